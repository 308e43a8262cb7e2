"""How draws and gradients of one warm-up window become a metric.

A window is filled in the compiled program, draw by draw. What is made of it is worked out
between chunks, in NumPy: it happens a few times a run, and costs the compiler nothing.
"""

import abc
import dataclasses
from contextlib import suppress
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ._metric import (
    AbstractMetric,
    DenseMetric,
    DiagonalMetric,
    HostArray,
    LowRankMetric,
    Vector,
    Welford,
    refilled,
    shrink,
    welford,
)

# Added to covariances whose diagonals agree and are of order one: small enough for
# correlations of 0.9999, large enough to make a matrix of rank one invertible.
_RIDGE = 1e-5
_KEEP, _MAX_RANK = 128, 16  # draws to find the directions of a low-rank metric, and these
_MANY_DRAWS = 100.0  # from here on variances of draws are better than ratios


class Moments(eqx.Module):
    """Moments of the draws of one window, and of the gradients there.

    Attributes:
        draws: Moments of the draws.
        gradients: Moments of the gradients.
        recent: The last draws and gradients themselves, in no order; None if not kept.
    """

    draws: Welford
    gradients: Welford
    recent: Float[Array, "keep 2 dim"] | None = None

    def update(self, position: Vector, gradient: Vector) -> "Moments":
        """Take one more draw into account."""
        recent = self.recent
        if recent is not None:
            slot = self.draws.count.astype(jnp.int32) % recent.shape[0]
            recent = recent.at[slot].set(jnp.stack([position, gradient]))
        return Moments(self.draws.update(position), self.gradients.update(gradient), recent)

    def update_all(
        self,
        positions: Float[Array, "chain dim"],
        gradients: Float[Array, "chain dim"],
        keep: Bool[Array, " chain"],
    ) -> "Moments":
        """Take one draw of each of several chains into account, those that are to be kept."""
        recent = self.recent
        if recent is not None:
            size, number = recent.shape[0], jnp.cumsum(keep, dtype=jnp.int32)
            slots = (self.draws.count.astype(jnp.int32) + number - 1) % size
            # Of more draws than there are slots the last ones count; others are dropped.
            slots = jnp.where(keep & (number > number[-1] - size), slots, size)
            recent = recent.at[slots].set(jnp.stack([positions, gradients], 1), mode="drop")
        return Moments(
            self.draws.update_all(positions, keep),
            self.gradients.update_all(gradients, keep),
            recent,
        )


def moments(like: Vector, estimator: "AbstractEstimator") -> Moments:
    """Return what an estimator needs to know of a window, without draws."""
    keep = estimator.keep
    recent = jnp.zeros((keep, 2, like.shape[0]), like.dtype) if keep else None
    empty = welford(like, dense=estimator.needs_covariance)
    return Moments(empty, empty, recent)


class AbstractEstimator(eqx.Module):
    """Turns windows into metrics."""

    needs_covariance: eqx.AbstractVar[bool]  # or are variances enough
    keep: eqx.AbstractVar[int]  # draws to keep in a window as they are

    @abc.abstractmethod
    def start(self, like: Vector) -> tuple[AbstractMetric, PyTree]:
        """Return the first metric, before any draws, and what the estimator remembers."""

    @abc.abstractmethod
    def estimate(
        self, window: Moments, metric: AbstractMetric, memory: PyTree
    ) -> tuple[AbstractMetric, PyTree]:
        """Return a metric, which may not be finite, and what to remember. In NumPy.

        Args:
            window: At least two draws.
            metric: Their metric.
            memory: What the last call returned.
        """


def finite_estimate(
    estimator: AbstractEstimator, window: Moments, metric: AbstractMetric, memory: PyTree
) -> tuple[AbstractMetric, PyTree]:
    """Return what `estimator.estimate` does, but the old metric if the new has no inverse."""
    with np.errstate(all="ignore"), suppress(np.linalg.LinAlgError):
        new, memory = estimator.estimate(window, metric, memory)
        if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new, new.dual()))):
            return new, memory
    return metric, memory


def replaced(module: Any, **changes: Any) -> Any:
    """Return a module with fields replaced; their leaves keep the types they had."""
    fields, structure = jax.tree.flatten(module, is_leaf=lambda node: node is not module)
    named = zip((field.name for field in dataclasses.fields(module)), fields, strict=True)
    new = lambda name, old: refilled(old, *jax.tree.leaves(changes[name]))
    return structure.unflatten(
        [new(name, old) if name in changes else old for name, old in named]
    )


class DiagonalEstimator(AbstractEstimator):
    """Diagonal: variances of draws, or from few draws their ratio to those of gradients.

    Ratios are right after a handful of draws wherever these are, but for a coordinate with
    tails they are too small: gradients there are large where there are few draws.

    Attributes:
        many: Draws from which on there are enough for variances, shrunk as in Stan.

    References:
        Seyboldt, Carlson and Carpenter (2026), metrics from gradients, arXiv:2603.18845.
    """

    many: float = _MANY_DRAWS
    needs_covariance: bool = eqx.field(default=False, init=False)
    keep: int = eqx.field(default=0, init=False)

    def start(self, like: Vector) -> tuple[AbstractMetric, PyTree]:
        return DiagonalMetric(jnp.ones_like(like)), ()

    def estimate(
        self, window: Moments, metric: AbstractMetric, memory: PyTree
    ) -> tuple[AbstractMetric, PyTree]:
        is_long = window.draws.count >= self.many
        scale = _draws_scale(window) if is_long else fisher_scale(window)
        return refilled(metric, scale), memory


class CovarianceEstimator(AbstractEstimator):
    """Dense: covariance of the draws, shrunk as in Stan."""

    needs_covariance: bool = eqx.field(default=True, init=False)
    keep: int = eqx.field(default=0, init=False)

    def start(self, like: Vector) -> tuple[AbstractMetric, PyTree]:
        return DenseMetric(jnp.eye(like.shape[0], dtype=like.dtype)), ()

    def estimate(
        self, window: Moments, metric: AbstractMetric, memory: PyTree
    ) -> tuple[AbstractMetric, PyTree]:
        covariance = shrink(_covariance(window.draws), _count(window))
        return refilled(metric, _cholesky(covariance)), memory


class _Candidates(eqx.Module):
    """Both metrics of the last window, to be judged by the draws of the next."""

    scale: Vector
    factor: Float[Array, "dim dim"]
    dual: Float[Array, "dim dim"]  # transposed inverse of `factor`


class AutoEstimator(AbstractEstimator):
    """Dense or diagonal by Fisher divergence, whichever predicts the next window better.

    References:
        Seyboldt, Carlson and Carpenter (2026), metrics from gradients, arXiv:2603.18845.
    """

    needs_covariance: bool = eqx.field(default=True, init=False)
    keep: int = eqx.field(default=0, init=False)

    def start(self, like: Vector) -> tuple[AbstractMetric, PyTree]:
        unit = jnp.eye(like.shape[0], dtype=like.dtype)
        nothing = jnp.full_like(unit, jnp.nan)
        return DenseMetric(unit), _Candidates(jnp.ones_like(like), nothing, nothing)

    def estimate(
        self, window: Moments, metric: AbstractMetric, memory: _Candidates
    ) -> tuple[AbstractMetric, PyTree]:
        scale, (factor, dual) = fisher_scale(window), fisher_factor(window)
        # Without a predecessor to judge there must be enough draws for a full rank.
        if np.isfinite(memory.factor).all():
            is_better = _dense_divergence(memory, window) < _diagonal_divergence(memory, window)
        else:
            is_better = _count(window) > 1.5 * len(scale)
        use_dense = is_better and np.isfinite(factor).all()
        metric = refilled(metric, factor if use_dense else np.diag(scale))
        return metric, refilled(memory, scale, factor, dual)


class LowRankEstimator(AbstractEstimator):
    """The Fisher diagonal, corrected along the few directions that need it most.

    References:
        Seyboldt, Carlson and Carpenter (2026), metrics from gradients, arXiv:2603.18845.
    """

    needs_covariance: bool = eqx.field(default=False, init=False)
    keep: int = eqx.field(default=_KEEP, init=False)

    def start(self, like: Vector) -> tuple[AbstractMetric, PyTree]:
        rank = min(_MAX_RANK, like.shape[0])
        vectors = jnp.eye(like.shape[0], rank, dtype=like.dtype)
        metric = LowRankMetric(jnp.ones_like(like), vectors, jnp.ones(rank, like.dtype))
        return metric, ()

    def estimate(
        self, window: Moments, metric: AbstractMetric, memory: PyTree
    ) -> tuple[AbstractMetric, PyTree]:
        scale = fisher_scale(window)
        rank = min(_MAX_RANK, len(scale))
        return refilled(metric, scale, *_principal_stretches(window, scale, rank)), memory


def _principal_stretches(
    window: Moments, scale: HostArray, rank: int
) -> tuple[HostArray, HostArray]:
    """Return the directions along which scaled draws are least like a standard normal.

    Within the span of the kept draws and gradients the inverse mass matrix is the same
    geometric mean as in `fisher_factor`. Only eigenvalues outside `[1 / 2, 2]` count:
    correcting the others is not worth the products.

    Returns:
        Orthonormal columns, shape `(dim, rank)`, and the square roots of their eigenvalues.
    """
    assert window.recent is not None
    recent = np.asarray(window.recent[: int(window.draws.count)], np.float64)

    def centred(x):
        return (x - x.mean(axis=0)) / np.sqrt(max(len(x) - 1, 1))

    draws, gradients = centred(recent[:, 0] / scale), centred(recent[:, 1] * scale)
    _, norms, basis = np.linalg.svd(np.concatenate([draws, gradients]), full_matrices=False)
    basis = basis[norms > 1e-6 * norms[0]]
    draws, gradients = draws @ basis.T, gradients @ basis.T
    ridge = _RIDGE * np.eye(len(basis))
    middle = _geometric_mean(draws.T @ draws + ridge, gradients.T @ gradients + ridge)
    values, vectors = np.linalg.eigh(middle)
    order = np.argsort(-np.abs(np.log(values)), kind="stable")[:rank]
    values, vectors = values[order], basis.T @ vectors[:, order]
    is_worth_it = np.abs(np.log(values)) > np.log(2.0)
    # A column of zeros leaves every vector alone.
    columns, stretch = np.zeros((len(scale), rank)), np.ones(rank)
    columns[:, : len(order)] = vectors * is_worth_it
    stretch[: len(order)] = np.where(is_worth_it, np.sqrt(values), 1)
    return columns, stretch


def fisher_scale(window: Moments) -> HostArray:
    """Return the diagonal scale of least Fisher divergence to a normal.

    The inverse mass matrix is `sqrt(var(x) / var(g))`: exact on a normal with independent
    components after two draws, wherever these are.

    References:
        Seyboldt, Carlson and Carpenter (2026), arXiv:2603.18845.
    """
    return (_variances(window.draws) / _variances(window.gradients)) ** 0.25


def fisher_factor(window: Moments) -> tuple[HostArray, HostArray]:
    """Return `L` with `L L^T` of least Fisher divergence to a normal, and `L^-T`.

    With `A = cov(x)` and `B = cov(g)` the minimum is at the geometric mean of `A` and the
    inverse of `B`, the solution of `S B S = A`. Exact on a normal after `dim + 1` draws.

    With Cholesky factors `A = F F^T`, `B = C C^T` and the singular value decomposition
    `F^T C = U m V^T`, `L = F U m^(-1/2)`: then `L^T B L = m`, and `S B S = L m L^T = A`.
    """
    scale = fisher_scale(window)
    outer, ridge = np.outer(scale, scale), _RIDGE * np.eye(len(scale))
    draws = _cholesky(_covariance(window.draws) / outer + ridge)
    gradients = _cholesky(_covariance(window.gradients) * outer + ridge)
    nothing = np.full_like(outer, np.nan)
    if not np.isfinite(draws).all() or not np.isfinite(gradients).all():
        return nothing, nothing
    left, middle, right = np.linalg.svd(draws.T @ gradients)
    factor = draws @ left / np.sqrt(middle)
    dual = gradients @ right.T / np.sqrt(middle)
    return scale[:, None] * factor, dual / scale[:, None]


def _geometric_mean(a: HostArray, b: HostArray) -> HostArray:
    """Return the solution `S` of `S b S = a`, both positive definite."""
    values, vectors = np.linalg.eigh(b)
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse_root = (vectors / np.sqrt(values)) @ vectors.T
    values, vectors = np.linalg.eigh(root @ a @ root)
    middle = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return inverse_root @ middle @ inverse_root


def _dense_divergence(old: _Candidates, window: Moments) -> float:
    """Return `tr(B S) + tr(A S^-1)`: the Fisher divergence but for a constant."""
    draws, gradients = _covariance(window.draws), _covariance(window.gradients)
    return float(
        np.sum(old.factor * (gradients @ old.factor)) + np.sum(old.dual * (draws @ old.dual))
    )


def _diagonal_divergence(old: _Candidates, window: Moments) -> float:
    variance = np.asarray(old.scale, np.float64) ** 2
    draws, gradients = _variances(window.draws), _variances(window.gradients)
    return float(np.sum(gradients * variance + draws / variance))


def _draws_scale(window: Moments) -> HostArray:
    return np.sqrt(shrink(_variances(window.draws), _count(window)))


def _count(window: Moments) -> float:
    return float(window.draws.count)


def _covariance(moments: Welford) -> HostArray:
    return np.asarray(moments.deviations, np.float64) / max(float(moments.count) - 1, 1)


def _variances(moments: Welford) -> HostArray:
    covariance = _covariance(moments)
    return np.diag(covariance) if covariance.ndim == 2 else covariance


def _cholesky(matrix: HostArray) -> HostArray:
    """Return the lower Cholesky factor; of NaN if `matrix` is not positive definite."""
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return np.full_like(matrix, np.nan)
