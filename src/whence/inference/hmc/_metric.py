"""Metrics: linear maps that whiten a posterior, and how they are estimated.

A metric is a linear map `L` with `L L^T` the inverse mass matrix (an estimate of the
posterior's covariance). Momenta are kept in units in which they are standard normal:
then kinetic energy is `|p|^2 / 2`, U-turns are dot products of momenta, and an integrator
needs `forward` (momentum to velocity) and `adjoint` (gradient to force) and nothing else.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ...core._types import PRNGKey, Scalar

Vector = Float[Array, " dim"]
# A NumPy array where a traced function sees a JAX array; type checkers know no name for both.
HostArray = Any


class AbstractMetric(eqx.Module):
    """A linear map `L`; the inverse mass matrix is `L L^T`."""

    @abc.abstractmethod
    def forward(self, momentum: Vector) -> Vector:
        """Return the velocity `L p` of a whitened momentum."""

    @abc.abstractmethod
    def adjoint(self, gradient: Vector) -> Vector:
        """Return the force `L^T g` on a whitened momentum."""

    @abc.abstractmethod
    def dual(self) -> "AbstractMetric":
        """Return the metric `L^-T`, whose `adjoint` whitens a position. In NumPy."""


class DiagonalMetric(AbstractMetric):
    """`L = diag(scale)`; `scale` estimates standard deviations."""

    scale: Vector

    def forward(self, momentum: Vector) -> Vector:
        return self.scale * momentum

    def adjoint(self, gradient: Vector) -> Vector:
        return self.scale * gradient

    def dual(self) -> "DiagonalMetric":
        return refilled(self, 1 / self.scale)


class DenseMetric(AbstractMetric):
    """`L = factor`, any square root of an estimated covariance, symmetric or triangular."""

    factor: Float[Array, "dim dim"]

    def forward(self, momentum: Vector) -> Vector:
        return self.factor @ momentum

    def adjoint(self, gradient: Vector) -> Vector:
        return gradient @ self.factor

    def dual(self) -> "DenseMetric":
        return refilled(self, np.linalg.inv(self.factor).T)


class LowRankMetric(AbstractMetric):
    """`L = diag(scale) (I + V diag(stretch - 1) V^T)` with orthonormal columns `V`.

    A product costs `2 dim rank` multiplications; a column that is not used has
    `stretch = 1`.
    """

    scale: Vector
    vectors: Float[Array, "dim rank"]
    stretch: Float[Array, " rank"]

    def forward(self, momentum: Vector) -> Vector:
        return self.scale * self._stretch(momentum)

    def adjoint(self, gradient: Vector) -> Vector:
        return self._stretch(self.scale * gradient)

    def dual(self) -> "LowRankMetric":
        return refilled(self, 1 / self.scale, self.vectors, 1 / self.stretch)

    def _stretch(self, vector: Vector) -> Vector:
        return vector + self.vectors @ ((self.stretch - 1) * (vector @ self.vectors))


def refilled(old: Any, *leaves: HostArray) -> Any:
    """Return a module like `old` with other leaves, of the types that those had. In NumPy."""
    was, structure = jax.tree.flatten(old)
    made = [np.asarray(new, leaf.dtype) for new, leaf in zip(leaves, was, strict=True)]
    return jax.tree.unflatten(structure, made)


def sample_momentum(key: PRNGKey, like: Vector) -> Vector:
    """Draw a whitened momentum of the shape and dtype of `like`."""
    return jax.random.normal(key, like.shape, like.dtype)


def kinetic_energy(momentum: Vector) -> Scalar:
    """Return the kinetic energy of a whitened momentum, in nats."""
    return 0.5 * jnp.sum(momentum * momentum)


class Welford(eqx.Module):
    """Running mean and sum of squared deviations: a vector, or a matrix if `dense`.

    References:
        Welford (1962), doi:10.1080/00401706.1962.10490022.
    """

    count: Scalar
    mean: Vector
    deviations: Float[Array, "dim ..."]

    def update(self, x: Vector) -> "Welford":
        """Take one more vector into account."""
        count = self.count + 1
        before = x - self.mean
        mean = self.mean + before / count
        after = x - mean
        product = before * after if self.deviations.ndim == 1 else jnp.outer(before, after)
        return Welford(count, mean, self.deviations + product)

    def update_all(
        self, x: Float[Array, "chain dim"], keep: Bool[Array, " chain"]
    ) -> "Welford":
        """Take several vectors into account, those that are to be kept.

        References:
            Chan, Golub, LeVeque (1983), doi:10.1080/00031305.1983.10483115.
        """
        size = jnp.sum(keep).astype(self.count.dtype)
        count = self.count + size
        mean = jnp.sum(jnp.where(keep[:, None], x, 0), axis=0) / jnp.maximum(size, 1)
        shift, share = mean - self.mean, size / jnp.maximum(count, 1)
        centred = jnp.where(keep[:, None], x - mean[None], 0)
        if self.deviations.ndim == 1:
            within, between = jnp.sum(centred**2, axis=0), shift**2
        else:
            within, between = centred.T @ centred, jnp.outer(shift, shift)
        deviations = self.deviations + within + between * (self.count * share)
        return Welford(count, self.mean + shift * share, deviations)


def welford(like: Vector, *, dense: bool = False) -> Welford:
    """Return an empty accumulator for vectors of the shape and dtype of `like`."""
    dim, dtype = like.shape[0], like.dtype
    deviations = jnp.zeros((dim, dim) if dense else (dim,), dtype)
    return Welford(jnp.zeros((), dtype), jnp.zeros(dim, dtype), deviations)


def shrink(covariance: HostArray, count: float) -> HostArray:
    """Shrink an estimate towards 1e-3 times the identity, by Stan's weights.

    References:
        Stan Development Team, reference manual, section "Euclidean metric" of the chapter
        on MCMC sampling: `n / (n + 5)` times the estimate plus `5e-3 / (n + 5)`.
    """
    weight = count / (count + 5)
    unit = np.eye(len(covariance)) if covariance.ndim == 2 else 1.0
    return weight * covariance + 1e-3 * (1 - weight) * unit
