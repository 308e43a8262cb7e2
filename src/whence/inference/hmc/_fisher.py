"""A metric from draws and gradients together, by the least Fisher divergence."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...core._types import Scalar
from ._metric import AbstractMetric, DenseMetric, DiagonalMetric


class Moments(eqx.Module):
    """Means and centred second moments of positions (row 0) and gradients (row 1).

    Attributes:
        count: Draws so far.
        mean: Their means.
        deviations: Sums of squares, or of outer products if the metric is dense.
    """

    count: Scalar
    mean: Float[Array, "2 dim"]
    deviations: Float[Array, "2 dim ..."]

    def update(
        self,
        position: Float[Array, "chain dim"],
        gradient: Float[Array, "chain dim"],
        keep: Bool[Array, " chain"],
    ) -> "Moments":
        """Take one more batch into account, without the chains that are not to be kept.

        References:
            Chan, Golub, LeVeque (1983), doi:10.1080/00031305.1983.10483115.
        """
        batch = jnp.stack([position, gradient])
        mask = keep[None, :, None]
        size = jnp.sum(keep).astype(self.count.dtype)
        total = self.count + size
        mean = jnp.sum(jnp.where(mask, batch, 0), axis=1) / jnp.maximum(size, 1)
        shift = mean - self.mean
        centred = jnp.where(mask, batch - mean[:, None, :], 0)
        if self.deviations.ndim == 2:
            within, between = jnp.sum(centred**2, axis=1), shift**2
        else:
            within = jnp.einsum("tci,tcj->tij", centred, centred)
            between = shift[:, :, None] * shift[:, None, :]
        fresh = size / jnp.maximum(total, 1)
        deviations = self.deviations + within + between * (self.count * fresh)
        return Moments(total, self.mean + shift * fresh, deviations)


def moments(like: Float[Array, " dim"], *, dense: bool) -> Moments:
    """Return an empty accumulator for vectors of the shape and dtype of `like`."""
    dim, dtype = like.shape[0], like.dtype
    shape = (2, dim, dim) if dense else (2, dim)
    return Moments(jnp.zeros((), dtype), jnp.zeros((2, dim), dtype), jnp.zeros(shape, dtype))


class Whitening(eqx.Module):
    """A metric `L` and its inverse.

    Attributes:
        metric: The map `L` from whitened to given coordinates.
        inverse: `1 / scale`, or the matrix `L⁻¹`.
    """

    metric: AbstractMetric
    inverse: Float[Array, "dim ..."]

    def whiten(self, vector: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return `L⁻¹ vector`."""
        return self.inverse * vector if self.inverse.ndim == 1 else self.inverse @ vector


def identity(like: Float[Array, " dim"], *, dense: bool) -> Whitening:
    """Return the whitening that changes nothing."""
    if dense:
        eye = jnp.eye(like.shape[0], dtype=like.dtype)
        return Whitening(DenseMetric(eye), eye)
    ones = jnp.ones_like(like)
    return Whitening(DiagonalMetric(ones), ones)


def fisher_whitening(moments: Moments) -> Whitening:
    """Return the linear map that makes the target look most like a standard normal.

    With `A` the covariance of positions and `B` that of gradients of the log density, the
    Fisher divergence is least for `L Lᵀ = S`, the geometric mean of `A` and `B⁻¹`, which
    solves `S B S = A`. For a normal target with covariance `C` the gradient is
    `-C⁻¹ (x - mean)`, so `B = C⁻¹ A C⁻¹` and `S = C` whatever the law of `x`: the metric is
    right as soon as there are more draws than dimensions, even far from the target.

    Args:
        moments: Of draws and gradients; at least two draws.

    Returns:
        The whitening; diagonal in kind if the moments are, and in value if there are at
        most twice as many draws as dimensions.

    References:
        Seyboldt, Carlson, Carpenter (2026), Preconditioning Hamiltonian Monte Carlo by
        minimizing Fisher divergence, arXiv:2603.18845.
    """
    spread, slope = moments.deviations
    tiny = jnp.finfo(spread.dtype).tiny
    if spread.ndim == 1:
        scale = (jnp.maximum(spread, tiny) / jnp.maximum(slope, tiny)) ** 0.25
        return Whitening(DiagonalMetric(scale), 1 / scale)
    # The diagonal solution first: it leaves two matrices of comparable entries.
    variances, slopes = jnp.diagonal(spread), jnp.diagonal(slope)
    scale = (jnp.maximum(variances, tiny) / jnp.maximum(slopes, tiny)) ** 0.25
    enough = moments.count > 2 * scale.size  # fewer draws tell nothing of correlations
    outer, unit = scale[:, None] * scale[None, :], jnp.eye(scale.size, dtype=scale.dtype)
    spread = _with_ridge(jnp.where(enough, spread / outer, unit))
    slope = _with_ridge(jnp.where(enough, slope * outer, unit))
    # With R = B^½: S = R⁻¹ (R A R)^½ R⁻¹, so L = R⁻¹ (R A R)^¼ and L⁻¹ = (R A R)^-¼ R.
    values, vectors = jnp.linalg.eigh(slope)
    root = (vectors * jnp.sqrt(values)) @ vectors.T
    inverse_root = (vectors * jax.lax.rsqrt(values)) @ vectors.T
    values, vectors = jnp.linalg.eigh(_with_ridge(root @ spread @ root))
    quarter = values**0.25
    factor = scale[:, None] * (inverse_root @ (vectors * quarter))
    inverse = ((vectors / quarter).T @ root) / scale[None, :]
    return Whitening(DenseMetric(factor), inverse)


def _with_ridge(matrix: Float[Array, "dim dim"]) -> Float[Array, "dim dim"]:
    """Lift eigenvalues that are zero or negative by rounding alone."""
    ridge = 4 * jnp.finfo(matrix.dtype).eps * jnp.trace(matrix)
    return matrix + ridge * jnp.eye(matrix.shape[0], dtype=matrix.dtype)
