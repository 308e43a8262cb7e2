"""Covariances over many weights, by what is asked of them and never as a matrix unless full."""

from __future__ import annotations

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ...core._types import Scalar

Weights = Float[Array, " weight"]


class AbstractSpread(eqx.Module):
    """A positive definite matrix S over d weights, as a Gaussian has it."""

    @property
    @abc.abstractmethod
    def noise_size(self) -> int:
        """How many standard normal numbers make a draw."""

    @property
    @abc.abstractmethod
    def log_det(self) -> Scalar:
        """Log determinant of S."""

    @property
    @abc.abstractmethod
    def marginal(self) -> Weights:
        """Diagonal of S."""

    @abc.abstractmethod
    def root(self, noise: Array) -> Weights:
        """Map standard normal numbers, `(noise_size,)`, to a draw of `N(0, S)`."""

    @abc.abstractmethod
    def times(self, columns: Array) -> Array:
        """Return S times `(weight,)` or `(weight, column)`."""


class AbstractCovariance(AbstractSpread):
    """The same, as a prior has it, which data are combined with."""

    @abc.abstractmethod
    def quadratic(self, vector: Weights) -> Scalar:
        """Return `vector' S^-1 vector`."""

    @abc.abstractmethod
    def scaled(self, factor: Scalar) -> AbstractCovariance:
        """Return S times a positive number."""

    @abc.abstractmethod
    def with_precision(self, diagonal: Weights) -> AbstractCovariance:
        """Return `(S^-1 + diag)^-1`."""


class Diagonal(AbstractCovariance):
    """Independent weights."""

    log_precision: Array  # log of the reciprocal of S, `(weight,)`

    @property
    def noise_size(self):
        return self.log_precision.shape[-1]

    @property
    def log_det(self):
        return -jnp.sum(self.log_precision)

    @property
    def marginal(self):
        return jnp.exp(-self.log_precision)

    def root(self, noise):
        return jnp.exp(-self.log_precision / 2) * noise

    def times(self, columns):
        return (self.marginal * columns.T).T

    def quadratic(self, vector):
        return jnp.sum(jnp.exp(self.log_precision) * vector**2)

    def scaled(self, factor):
        return Diagonal(self.log_precision - jnp.log(factor))

    def with_precision(self, diagonal):
        return Diagonal(jnp.log(jnp.exp(self.log_precision) + diagonal))


class Full(AbstractCovariance):
    """Any covariance of few weights, by its Cholesky factor."""

    # The factor below the diagonal, and on it the log of its diagonal, `(weight, weight)`;
    # what is above counts for nothing.
    lower: Array

    @property
    def tril(self) -> Array:
        """The Cholesky factor L, `S = L L'`."""
        diagonal = jnp.exp(jnp.diagonal(self.lower))
        return jnp.tril(self.lower, -1) + jnp.diag(diagonal)

    @property
    def noise_size(self):
        return self.lower.shape[-1]

    @property
    def log_det(self):
        return 2 * jnp.sum(jnp.diagonal(self.lower))

    @property
    def marginal(self):
        return jnp.sum(self.tril**2, axis=1)

    def root(self, noise):
        return self.tril @ noise

    def times(self, columns):
        return self.tril @ (self.tril.T @ columns)

    def quadratic(self, vector):
        return jnp.sum(solve_triangular(self.tril, vector, lower=True) ** 2)

    def scaled(self, factor):
        return of_tril(jnp.sqrt(factor) * self.tril)

    def with_precision(self, diagonal):
        tril = self.tril
        inner = jnp.eye(len(tril), dtype=tril.dtype) + tril.T @ (diagonal[:, None] * tril)
        white = solve_triangular(jnp.linalg.cholesky(inner), tril.T, lower=True)
        return full(white.T @ white)


class LowRank(AbstractCovariance):
    """Independent weights plus a few directions in which tasks differ: `S = D + U U'`."""

    log_precision: Array  # log of the reciprocal of D, `(weight,)`
    factor: Array  # U, `(weight, rank)`

    @property
    def noise_size(self):
        return sum(self.factor.shape[-2:])

    def _inner(self) -> tuple[Array, Array]:
        """Return the factor of `I + U' D^-1 U`, and `D^-1 U`."""
        scaled = jnp.exp(self.log_precision)[:, None] * self.factor
        rank = self.factor.shape[1]
        inner = jnp.eye(rank, dtype=scaled.dtype) + self.factor.T @ scaled
        return jnp.linalg.cholesky(inner), scaled

    @property
    def log_det(self):
        inner = jnp.sum(jnp.log(jnp.diagonal(self._inner()[0])))
        return 2 * inner - jnp.sum(self.log_precision)

    @property
    def marginal(self):
        return jnp.exp(-self.log_precision) + jnp.sum(self.factor**2, axis=1)

    def root(self, noise):
        own, rest = jnp.split(noise, [len(self.log_precision)])
        return jnp.exp(-self.log_precision / 2) * own + self.factor @ rest

    def times(self, columns):
        own = (jnp.exp(-self.log_precision) * columns.T).T
        return own + self.factor @ (self.factor.T @ columns)

    def quadratic(self, vector):
        tril, scaled = self._inner()
        white = solve_triangular(tril, scaled.T @ vector, lower=True)
        return jnp.sum(jnp.exp(self.log_precision) * vector**2) - jnp.sum(white**2)

    def scaled(self, factor):
        return LowRank(self.log_precision - jnp.log(factor), jnp.sqrt(factor) * self.factor)

    def with_precision(self, diagonal):
        # S^-1 = D^-1 - W W' with W = D^-1 U C^-T and C C' = I + U' D^-1 U. With
        # E = (D^-1 + diag)^-1 the new matrix is E + E W (I - W' E W)^-1 W' E.
        tril, scaled = self._inner()
        root = solve_triangular(tril, scaled.T, lower=True).T
        variance = 1 / (jnp.exp(self.log_precision) + diagonal)
        inner = jnp.eye(root.shape[1], dtype=root.dtype) - root.T @ (variance[:, None] * root)
        moved = variance[:, None] * root
        new = solve_triangular(jnp.linalg.cholesky(inner), moved.T, lower=True).T
        return LowRank(-jnp.log(variance), new)


class Kronecker(AbstractSpread):
    """Blocks for each array of the network, diagonal in the eigenvectors of two factors."""

    base: AbstractSpread  # in that basis, where it is diagonal
    left: tuple[Array, ...]  # eigenvectors along the rows of each array
    right: tuple[Array, ...]  # along its columns

    def _blocks(self, vector: Weights) -> list[Array]:
        shapes = [(len(a), len(b)) for a, b in zip(self.left, self.right)]
        ends = np.cumsum([a * b for a, b in shapes])[:-1]
        return [p.reshape(s) for p, s in zip(jnp.split(vector, ends), shapes)]

    def back(self, vector: Weights, power: int = 1) -> Weights:
        """Return a vector given in the basis; or with powers of the eigenvectors' entries."""
        parts = zip(self._blocks(vector), self.left, self.right)
        return jnp.concatenate([(a**power @ p @ (b**power).T).ravel() for p, a, b in parts])

    def into(self, vector: Weights) -> Weights:
        """Return a vector in the basis."""
        parts = zip(self._blocks(vector), self.left, self.right)
        return jnp.concatenate([(a.T @ p @ b).ravel() for p, a, b in parts])

    def level(self, vector: Weights) -> Weights:
        """Return a vector with the mean of each block in it."""
        each = [jnp.full(p.size, jnp.mean(p)) for p in self._blocks(vector)]
        return jnp.concatenate(each)

    @property
    def noise_size(self):
        return self.base.noise_size

    @property
    def log_det(self):
        return self.base.log_det

    @property
    def marginal(self):
        return self.back(self.base.marginal, 2)

    def root(self, noise):
        return self.back(self.base.root(noise))

    def times(self, columns):
        if columns.ndim == 2:
            return jax.vmap(self.times, in_axes=1, out_axes=1)(columns)
        return self.back(self.base.times(self.into(columns)))


def log_det(tril: Array) -> Scalar:
    """Return the log determinant of a matrix with a Cholesky factor."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(tril)))


def of_tril(tril: Array) -> Full:
    return Full(jnp.tril(tril, -1) + jnp.diag(jnp.log(jnp.diagonal(tril))))


def full(matrix: Array) -> Full:
    return of_tril(jnp.linalg.cholesky(matrix))
