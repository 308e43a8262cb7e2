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


class Window(eqx.Module):
    """Moments of the draws of one window, and of the gradients there."""

    draws: Welford
    gradients: Welford

    def update(self, position: Vector, gradient: Vector) -> "Window":
        """Take one more draw into account."""
        return Window(self.draws.update(position), self.gradients.update(gradient))


def window(like: Vector, *, dense: bool) -> Window:
    """Return an empty window for vectors of the shape and dtype of `like`."""
    return Window(welford(like, dense=dense), welford(like, dense=dense))


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

    @abc.abstractmethod
    def start(self, like: Vector) -> "Estimate":
        """Return the first metric, before any draws."""

    @abc.abstractmethod
    def estimate(self, window: Window, last: "Estimate") -> "Estimate":
        """Return the metric for the next window; the last one where the data will not do."""


class VarianceEstimator(AbstractEstimator):
    """Diagonal: variances of the draws, shrunk as in Stan."""

    needs_covariance: bool = eqx.field(default=False, init=False)

    def start(self, like: Vector) -> Estimate:
        return _blind(DiagonalMetric(jnp.ones_like(like)))

    def estimate(self, window: Window, last: Estimate) -> Estimate:
        draws = window.draws
        scale = jnp.sqrt(shrink(draws.covariance(), draws.count))
        return _blind(_finite_or(DiagonalMetric(scale), last.metric))


class FisherEstimator(AbstractEstimator):
    """Diagonal: ratio of the standard deviations of draws and of gradients."""

    needs_covariance: bool = eqx.field(default=False, init=False)

    def start(self, like: Vector) -> Estimate:
        return _blind(DiagonalMetric(jnp.ones_like(like)))

    def estimate(self, window: Window, last: Estimate) -> Estimate:
        return _blind(_finite_or(DiagonalMetric(fisher_scale(window)), last.metric))


class CovarianceEstimator(AbstractEstimator):
    """Dense: covariance of the draws, shrunk as in Stan."""

    needs_covariance: bool = eqx.field(default=True, init=False)

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
        known = jnp.clip(jnp.nan_to_num(excess**2, nan=1.0), 1, _MAX_CAUTION)
        caution = jnp.where(count < _FEW_DRAWS, 1, known)
        return Estimate(
            _finite_or(metric, last.metric), caution, _Candidates(scale, factor, dual)
        )


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
