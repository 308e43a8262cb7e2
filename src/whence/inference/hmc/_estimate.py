"""How draws and gradients of one warm-up window become a metric."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...core._types import Scalar
from ._linalg import cholesky, matmul, orthogonalise
from ._metric import (
    AbstractMetric,
    DenseMetric,
    DiagonalMetric,
    LowRankMetric,
    Vector,
    Welford,
    shrink,
    welford,
)

Matrix = Float[Array, "dim dim"]
# Added to covariances whose diagonals agree and are of order one: small enough for
# correlations of 0.9999, large enough to make a matrix of rank one invertible.
_RIDGE = 1e-5
# Without a dense estimate nothing is known about tails. Stan's 0.8 comes out as 0.9.
_BLIND_CAUTION = 2.0
_MAX_CAUTION, _FEW_DRAWS = 5.0, 50
_HARMLESS_EXCESS = 1.2  # of a posterior that is nearly normal, such as a regression's
_KEEP, _MAX_RANK = 128, 16  # draws to find the directions of a low-rank metric, and these


class Window(eqx.Module):
    """Moments of the draws of one window, and of the gradients there.

    Attributes:
        draws: Moments of the draws.
        gradients: Moments of the gradients.
        recent: The last draws and gradients themselves, in no order; None if not kept.
    """

    draws: Welford
    gradients: Welford
    recent: Float[Array, "keep 2 dim"] | None = None

    def update(self, position: Vector, gradient: Vector) -> "Window":
        """Take one more draw into account."""
        recent = self.recent
        if recent is not None:
            slot = self.draws.count.astype(jnp.int32) % recent.shape[0]
            recent = recent.at[slot].set(jnp.stack([position, gradient]))
        return Window(self.draws.update(position), self.gradients.update(gradient), recent)


def window(like: Vector, *, dense: bool, keep: int = 0) -> Window:
    """Return an empty window for vectors of the shape and dtype of `like`.

    Args:
        like: A position.
        dense: Whether to keep covariances, or variances alone.
        keep: Draws to keep as they are.

    Returns:
        A window without draws.
    """
    recent = jnp.zeros((keep, 2, like.shape[0]), like.dtype) if keep else None
    return Window(welford(like, dense=dense), welford(like, dense=dense), recent)


class Estimate(eqx.Module):
    """A metric, and what else a window has taught.

    Attributes:
        metric: For the next window.
        caution: At least 1; the larger, the less does the posterior look like a normal
            one through this metric. Step sizes aim at a rejection rate divided by it.
        memory: What the estimator keeps for itself.
    """

    metric: AbstractMetric
    caution: Scalar
    memory: PyTree


class AbstractEstimator(eqx.Module):
    """Turns windows into metrics."""

    needs_covariance: eqx.AbstractVar[bool]  # or are variances enough
    keep: eqx.AbstractVar[int]  # draws to keep in a window as they are

    @abc.abstractmethod
    def start(self, like: Vector) -> "Estimate":
        """Return the first metric, before any draws."""

    @abc.abstractmethod
    def estimate(self, window: Window, last: "Estimate") -> "Estimate":
        """Return the metric for the next window; the last one where the data will not do."""


class VarianceEstimator(AbstractEstimator):
    """Diagonal: variances of the draws, shrunk as in Stan."""

    needs_covariance: bool = eqx.field(default=False, init=False)
    keep: int = eqx.field(default=0, init=False)

    def start(self, like: Vector) -> Estimate:
        return _blind(DiagonalMetric(jnp.ones_like(like)))

    def estimate(self, window: Window, last: Estimate) -> Estimate:
        draws = window.draws
        scale = jnp.sqrt(shrink(draws.covariance(), draws.count))
        return _blind(_finite_or(DiagonalMetric(scale), last.metric))


class FisherEstimator(AbstractEstimator):
    """Diagonal: ratio of the standard deviations of draws and of gradients."""

    needs_covariance: bool = eqx.field(default=False, init=False)
    keep: int = eqx.field(default=0, init=False)

    def start(self, like: Vector) -> Estimate:
        return _blind(DiagonalMetric(jnp.ones_like(like)))

    def estimate(self, window: Window, last: Estimate) -> Estimate:
        return _blind(_finite_or(DiagonalMetric(fisher_scale(window)), last.metric))


class CovarianceEstimator(AbstractEstimator):
    """Dense: covariance of the draws, shrunk as in Stan."""

    needs_covariance: bool = eqx.field(default=True, init=False)
    keep: int = eqx.field(default=0, init=False)

    def start(self, like: Vector) -> Estimate:
        return _blind(DenseMetric(jnp.eye(like.shape[0], dtype=like.dtype)))

    def estimate(self, window: Window, last: Estimate) -> Estimate:
        draws = window.draws
        factor = cholesky(shrink(draws.covariance(), draws.count))
        return _blind(_finite_or(DenseMetric(factor), last.metric))


class _Candidates(eqx.Module):
    """Both metrics of the last window, to be judged by the draws of the next."""

    scale: Vector
    factor: Matrix
    dual: Matrix  # transposed inverse of `factor`


class AutoEstimator(AbstractEstimator):
    """Dense or diagonal by Fisher divergence, whichever predicts the next window better."""

    needs_covariance: bool = eqx.field(default=True, init=False)
    keep: int = eqx.field(default=0, init=False)

    def start(self, like: Vector) -> Estimate:
        unit = jnp.eye(like.shape[0], dtype=like.dtype)
        nothing = jnp.full_like(unit, jnp.nan)
        memory = _Candidates(jnp.ones_like(like), nothing, nothing)
        return Estimate(DenseMetric(unit), jnp.ones((), like.dtype), memory)

    def estimate(self, window: Window, last: Estimate) -> Estimate:
        scale, (factor, dual, spectrum) = fisher_scale(window), fisher_factor(window)
        old = last.memory
        is_better = _dense_divergence(old, window) < _diagonal_divergence(old, window)
        # Without a predecessor to judge there must be enough draws for a full rank.
        is_first = ~jnp.all(jnp.isfinite(old.factor))
        count = window.draws.count
        use_dense = jnp.where(is_first, count > 1.5 * scale.shape[0], is_better)
        use_dense = use_dense & jnp.all(jnp.isfinite(factor))
        metric = DenseMetric(jnp.where(use_dense, factor, jnp.diag(scale)))
        # While the chain still travels the spectrum tells of the way, not of the posterior.
        # From n normal draws the largest value is (1 + sqrt(dim / n))^2: Marchenko, Pastur.
        excess = jnp.max(spectrum) / (1 + jnp.sqrt(scale.shape[0] / count)) ** 2
        known = (jnp.nan_to_num(excess, nan=1.0) / _HARMLESS_EXCESS) ** 2
        known = jnp.clip(known, 1, _MAX_CAUTION)
        caution = jnp.where(count < _FEW_DRAWS, 1, known)
        return Estimate(
            _finite_or(metric, last.metric), caution, _Candidates(scale, factor, dual)
        )


class LowRankEstimator(AbstractEstimator):
    """The Fisher diagonal, corrected along the few directions that need it most."""

    needs_covariance: bool = eqx.field(default=False, init=False)
    keep: int = eqx.field(default=_KEEP, init=False)

    def start(self, like: Vector) -> Estimate:
        rank = min(_MAX_RANK, like.shape[0])
        vectors = jnp.eye(like.shape[0], rank, dtype=like.dtype)
        return _blind(LowRankMetric(jnp.ones_like(like), vectors, jnp.ones(rank, like.dtype)))

    def estimate(self, window: Window, last: Estimate) -> Estimate:
        scale = fisher_scale(window)
        rank = min(_MAX_RANK, scale.shape[0])
        metric = LowRankMetric(scale, *_principal_stretches(window, scale, rank))
        return _blind(_finite_or(metric, last.metric))


def _principal_stretches(
    window: Window, scale: Vector, rank: int
) -> tuple[Float[Array, "dim rank"], Float[Array, " rank"]]:
    """Return the directions along which scaled draws are least like a standard normal.

    Within the span of the kept draws and gradients the inverse mass matrix is the same
    geometric mean as in `fisher_factor`. Only eigenvalues outside `[1 / 2, 2]` count:
    correcting the others is not worth the products.

    Args:
        window: With `recent` draws.
        scale: Of the diagonal.
        rank: Number of directions to return.

    Returns:
        Orthonormal columns and the square roots of their eigenvalues.
    """
    recent = window.recent
    assert recent is not None
    count = jnp.minimum(window.draws.count, recent.shape[0])
    is_filled = (jnp.arange(recent.shape[0]) < count)[:, None]

    def centred(x):
        mean = jnp.sum(jnp.where(is_filled, x, 0), axis=0) / count
        return jnp.where(is_filled, x - mean, 0) / jnp.sqrt(jnp.maximum(count - 1, 1))

    draws, gradients = centred(recent[:, 0] / scale), centred(recent[:, 1] * scale)
    _, norms, basis = jnp.linalg.svd(jnp.concatenate([draws, gradients]), full_matrices=False)
    basis = jnp.where((norms > 1e-6 * norms[0])[:, None], basis, 0)
    draws, gradients = draws @ basis.T, gradients @ basis.T
    ridge = _RIDGE * jnp.eye(basis.shape[0], dtype=scale.dtype)
    values, vectors = jnp.linalg.eigh(gradients.T @ gradients + ridge)
    root = (vectors * jnp.sqrt(values)) @ vectors.T
    inverse_root = (vectors / jnp.sqrt(values)) @ vectors.T
    values, vectors = jnp.linalg.eigh(root @ (draws.T @ draws + ridge) @ root)
    middle = (vectors * jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T
    values, vectors = jnp.linalg.eigh(inverse_root @ middle @ inverse_root)
    _, order = jax.lax.top_k(jnp.abs(jnp.log(values)), rank)
    values, vectors = values[order], vectors[:, order]
    is_worth_it = jnp.abs(jnp.log(values)) > jnp.log(2.0)
    # Directions outside the basis carry no information: their eigenvalue is 1, their
    # column zero, and the product leaves them alone.
    return basis.T @ vectors, jnp.where(is_worth_it, jnp.sqrt(values), 1)


def fisher_scale(window: Window) -> Vector:
    """Return the diagonal scale of least Fisher divergence to a normal.

    The inverse mass matrix is `sqrt(var(x) / var(g))`: exact on a normal with independent
    components after two draws, wherever these are.

    References:
        Seyboldt, Carlson and Carpenter (2026), arXiv:2603.18845.
    """
    return _scale(_variances(window.draws), _variances(window.gradients))


def fisher_factor(window: Window) -> tuple[Matrix, Matrix, Vector]:
    """Return `L` with `L L^T` of least Fisher divergence to a normal, `L^-T`, a spectrum.

    With `A = cov(x)` and `B = cov(g)` the minimum is at the geometric mean of `A` and the
    inverse of `B`, the solution of `S B S = A`. Exact on a normal after `dim + 1` draws.

    With Cholesky factors `A = F F^T`, `B = C C^T` and the singular value decomposition
    `F^T C = U m V^T`, `L = F U m^(-1/2)`: then `L^T B L = m`, and `S B S = L m L^T = A`.

    The spectrum `m` holds what the metric cannot mend. Whitened draws and whitened gradients
    both have variances `m`; on a normal these are 1, on any other distribution they are
    larger (the Cramer-Rao inequality for location).
    """
    scale = fisher_scale(window)
    outer = scale[:, None] * scale[None, :]
    ridge = _RIDGE * jnp.eye(scale.shape[0], dtype=scale.dtype)
    draws = window.draws.covariance() / outer + ridge
    gradients = window.gradients.covariance() * outer + ridge
    root = cholesky(draws)
    rows = orthogonalise(matmul(cholesky(gradients).T, root))
    spectrum = jnp.sqrt(jnp.sum(rows * rows, axis=1))
    factor = matmul(root, rows.T / spectrum**1.5)
    dual = matmul(gradients, factor) / spectrum
    return scale[:, None] * factor, dual / scale[:, None], spectrum


def _dense_divergence(old: _Candidates, window: Window) -> Scalar:
    """Return `tr(B S) + tr(A S^-1)`: the Fisher divergence but for a constant."""
    draws, gradients = window.draws.covariance(), window.gradients.covariance()
    return jnp.sum(old.factor * matmul(gradients, old.factor)) + jnp.sum(
        old.dual * matmul(draws, old.dual)
    )


def _diagonal_divergence(old: _Candidates, window: Window) -> Scalar:
    variance = old.scale**2
    draws, gradients = _variances(window.draws), _variances(window.gradients)
    return jnp.sum(gradients * variance + draws / variance)


def _variances(moments: Welford) -> Vector:
    covariance = moments.covariance()
    return jnp.diag(covariance) if covariance.ndim == 2 else covariance


def _scale(draws: Vector, gradients: Vector) -> Vector:
    return jnp.sqrt(jnp.sqrt(draws / gradients))


def _blind(metric: AbstractMetric) -> Estimate:
    dtype = jax.tree.leaves(metric)[0].dtype
    return Estimate(metric, jnp.asarray(_BLIND_CAUTION, dtype), ())


def _finite_or(metric: AbstractMetric, fallback: AbstractMetric) -> AbstractMetric:
    leaves = jax.tree.leaves(metric)
    is_good = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
    return jax.tree.map(lambda new, old: jnp.where(is_good, new, old), metric, fallback)
