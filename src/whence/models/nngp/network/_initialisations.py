"""Random matrices with entries of variance 1: independent, or exchangeable and structured.

Rows and columns of each are exchangeable and entries uncorrelated, which with the fourth
moments is what the Gaussian limit needs (Nait Saada, Naderi, Tanner 2024, Beyond IID
weights, arXiv:2310.16597). There the first layer is independent; so it is here.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ....core._convert import number
from ....core._types import PRNGKey


class AbstractInitialisation(eqx.Module):
    """A law of weight matrices."""

    @abc.abstractmethod
    def sample(self, shape: tuple[int, int], *, key: PRNGKey) -> Float[Array, "out in"]:
        """Draw a matrix with entries of mean 0 and variance 1."""


class Independent(AbstractInitialisation):
    """Independent standard normal entries."""

    def sample(self, shape: tuple[int, int], *, key: PRNGKey) -> Float[Array, "out in"]:
        return jr.normal(key, shape)


class Orthogonal(AbstractInitialisation):
    """Orthonormal rows or columns, whichever are fewer, uniformly distributed."""

    def sample(self, shape: tuple[int, int], *, key: PRNGKey) -> Float[Array, "out in"]:
        large, small = max(shape), min(shape)
        columns = _orthonormal(large, small, key) * jnp.sqrt(float(large))
        return columns if shape[0] == large else columns.T


class LowRank(AbstractInitialisation):
    """Orthonormal columns times a Gaussian matrix, of rank `fraction` of the largest one."""

    fraction: float = eqx.field(
        static=True, default=0.5, converter=number("fraction", above=0, most=1)
    )

    def sample(self, shape: tuple[int, int], *, key: PRNGKey) -> Float[Array, "out in"]:
        key_left, key_right = jr.split(key)
        rank = max(1, round(self.fraction * min(shape)))
        left = _orthonormal(shape[0], rank, key_left)
        return jnp.sqrt(shape[0] / rank) * left @ jr.normal(key_right, (rank, shape[1]))


class Sparse(AbstractInitialisation):
    """Each unit reads `density` of the units below, chosen at random; Gaussian weights."""

    density: float = eqx.field(
        static=True, default=0.5, converter=number("density", above=0, most=1)
    )

    def sample(self, shape: tuple[int, int], *, key: PRNGKey) -> Float[Array, "out in"]:
        key_place, key_value = jr.split(key)
        count = max(1, round(self.density * shape[1]))
        order = jnp.argsort(jr.uniform(key_place, shape), axis=1)
        return jnp.where(order < count, jnp.sqrt(shape[1] / count), 0) * jr.normal(
            key_value, shape
        )


def _orthonormal(rows: int, columns: int, key: PRNGKey) -> Array:
    """Return a uniform matrix of orthonormal columns (Mezzadri 2007, arXiv:math-ph/0609050)."""
    q, r = jnp.linalg.qr(jr.normal(key, (rows, columns)))
    return q * jnp.where(jnp.diagonal(r) < 0, -1, 1)
