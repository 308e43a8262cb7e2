"""How draws and gradients of one warm-up window become a metric."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

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


class AbstractEstimator(eqx.Module):
    """Turns windows into metrics. `memory` is what it keeps from one window to the next."""

    needs_covariance: eqx.AbstractVar[bool]  # or are variances enough

    @abc.abstractmethod
    def start(self, like: Vector) -> tuple[AbstractMetric, PyTree]:
        """Return the first metric and an empty memory."""

    @abc.abstractmethod
    def estimate(
        self, window: Window, metric: AbstractMetric, memory: PyTree
    ) -> tuple[AbstractMetric, PyTree]:
        """Return the metric for the next window; the old one where the data will not do."""


class VarianceEstimator(AbstractEstimator):
    """Diagonal: variances of the draws, shrunk as in Stan."""

    needs_covariance: bool = eqx.field(default=False, init=False)

    def start(self, like: Vector) -> tuple[AbstractMetric, PyTree]:
        return DiagonalMetric(jnp.ones_like(like)), ()

    def estimate(self, window, metric, memory):
        draws = window.draws
        scale = jnp.sqrt(shrink(draws.covariance(), draws.count))
        return _finite_or(DiagonalMetric(scale), metric), ()


class FisherEstimator(AbstractEstimator):
    """Diagonal: ratio of the standard deviations of draws and of gradients."""

    needs_covariance: bool = eqx.field(default=False, init=False)

    def start(self, like: Vector) -> tuple[AbstractMetric, PyTree]:
        return DiagonalMetric(jnp.ones_like(like)), ()

    def estimate(self, window, metric, memory):
        return _finite_or(DiagonalMetric(fisher_scale(window)), metric), ()


class CovarianceEstimator(AbstractEstimator):
    """Dense: covariance of the draws, shrunk as in Stan."""

    needs_covariance: bool = eqx.field(default=True, init=False)

    def start(self, like: Vector) -> tuple[AbstractMetric, PyTree]:
        return DenseMetric(jnp.eye(like.shape[0], dtype=like.dtype)), ()

    def estimate(self, window, metric, memory):
        draws = window.draws
        factor = cholesky(shrink(draws.covariance(), draws.count))
        return _finite_or(DenseMetric(factor), metric), ()


class _Candidates(eqx.Module):
    """Both metrics of the last window, to be judged by the draws of the next."""

    scale: Vector
    factor: Matrix
    dual: Matrix  # transposed inverse of `factor`


class AutoEstimator(AbstractEstimator):
    """Dense or diagonal by Fisher divergence, whichever predicts the next window better."""

    needs_covariance: bool = eqx.field(default=True, init=False)

    def start(self, like: Vector) -> tuple[AbstractMetric, PyTree]:
        unit = jnp.eye(like.shape[0], dtype=like.dtype)
        nothing = jnp.full_like(unit, jnp.nan)
        return DenseMetric(unit), _Candidates(jnp.ones_like(like), nothing, nothing)

    def estimate(self, window, metric, memory):
        scale = fisher_scale(window)
        factor, dual = fisher_factor(window)
        new = _Candidates(scale, factor, dual)
        is_better = _dense_divergence(memory, window) < _diagonal_divergence(memory, window)
        # Without a predecessor to judge there must be enough draws for a full rank.
        dim = scale.shape[0]
        is_first = ~jnp.all(jnp.isfinite(memory.factor))
        use_dense = jnp.where(is_first, window.draws.count > 1.5 * dim, is_better)
        use_dense = use_dense & jnp.all(jnp.isfinite(factor))
        best = DenseMetric(jnp.where(use_dense, factor, jnp.diag(scale)))
        return _finite_or(best, metric), new


def fisher_scale(window: Window) -> Vector:
    """Return the diagonal scale of least Fisher divergence to a normal.

    The inverse mass matrix is `sqrt(var(x) / var(g))`: exact on a normal with independent
    components after two draws, wherever these are.

    References:
        Seyboldt, Carlson and Carpenter (2026), arXiv:2603.18845.
    """
    return _scale(_variances(window.draws), _variances(window.gradients))


def fisher_factor(window: Window) -> tuple[Matrix, Matrix]:
    """Return `L` with `L L^T` of least Fisher divergence to a normal, and `L^-T`.

    With `A = cov(x)` and `B = cov(g)` the minimum is at the geometric mean of `A` and the
    inverse of `B`, the solution of `S B S = A`. Exact on a normal after `dim + 1` draws.

    With Cholesky factors `A = F F^T`, `B = C C^T` and the singular value decomposition
    `F^T C = U m V^T`, `L = F U m^(-1/2)`: then `L^T B L = m`, and `S B S = L m L^T = A`.
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
    return scale[:, None] * factor, dual / scale[:, None]


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


def _finite_or(metric: AbstractMetric, fallback: AbstractMetric) -> AbstractMetric:
    leaves = jax.tree.leaves(metric)
    is_good = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
    return jax.tree.map(lambda new, old: jnp.where(is_good, new, old), metric, fallback)
