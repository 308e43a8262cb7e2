"""Covariances over many weights, by what is asked of them and never as a matrix unless full."""

from __future__ import annotations

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ...core._types import Scalar

Weights = Float[Array, " weight"]


class AbstractCovariance(eqx.Module):
    """A positive definite matrix S over d weights."""

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
    """Independent weights.

    Args:
        log_precision: Log of the reciprocal of S, shape `(weight,)`.
    """

    log_precision: Array

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
        variance = self.marginal
        return (variance if columns.ndim == 1 else variance[:, None]) * columns

    def quadratic(self, vector):
        return jnp.sum(jnp.exp(self.log_precision) * vector**2)

    def scaled(self, factor):
        return Diagonal(self.log_precision - jnp.log(factor))

    def with_precision(self, diagonal):
        return Diagonal(jnp.log(jnp.exp(self.log_precision) + diagonal))


class Full(AbstractCovariance):
    """Any covariance of few weights, by its Cholesky factor.

    Args:
        lower: The factor below the diagonal, and on it the log of its diagonal, shape
            `(weight, weight)`; what is above counts for nothing.
    """

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
        tril = self.tril
        return tril @ (tril.T @ columns)

    def quadratic(self, vector):
        return jnp.sum(solve_triangular(self.tril, vector, lower=True) ** 2)

    def scaled(self, factor):
        shift = jnp.log(factor) / 2
        size = self.noise_size
        lower = jnp.exp(shift) * jnp.tril(self.lower, -1)
        return Full(lower + jnp.diag(jnp.diagonal(self.lower) + jnp.broadcast_to(shift, size)))

    def with_precision(self, diagonal):
        tril = self.tril
        inner = jnp.eye(len(tril), dtype=tril.dtype) + tril.T @ (diagonal[:, None] * tril)
        white = solve_triangular(jnp.linalg.cholesky(inner), tril.T, lower=True)
        return full(white.T @ white)


class LowRank(AbstractCovariance):
    """Independent weights plus a few directions in which tasks differ: `S = D + U U'`.

    Args:
        log_precision: Log of the reciprocal of D, shape `(weight,)`.
        factor: U, shape `(weight, rank)`.
    """

    log_precision: Array
    factor: Array

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
        size = len(self.log_precision)
        own = jnp.exp(-self.log_precision / 2) * noise[:size]
        return own + self.factor @ noise[size:]

    def times(self, columns):
        variance = jnp.exp(-self.log_precision)
        own = (variance if columns.ndim == 1 else variance[:, None]) * columns
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


class Kronecker(AbstractCovariance):
    """Blocks `(L x R / t + p I)^-1`, one for each array of the network.

    Args:
        values: Eigenvalues of the precision of each block, `(row, column)`.
        left: Eigenvectors of each L.
        right: Eigenvectors of each R.
    """

    values: tuple[Array, ...]
    left: tuple[Array, ...]
    right: tuple[Array, ...]

    @property
    def noise_size(self):
        return sum(v.size for v in self.values)

    @property
    def log_det(self):
        return -jnp.sum(jnp.stack([jnp.sum(jnp.log(v)) for v in self.values]))

    @property
    def marginal(self):
        each = [
            ((a**2) @ (1 / v) @ (b**2).T).ravel()
            for v, a, b in zip(self.values, self.left, self.right)
        ]
        return jnp.concatenate(each)

    def _apply(self, vector: Array, power: float, *, turned: bool) -> Array:
        """Return a vector scaled in the eigenbasis; if not `turned`, it is in it already."""
        out, at = [], 0
        for v, a, b in zip(self.values, self.left, self.right):
            block = vector[at : at + v.size].reshape(v.shape)
            at += v.size
            block = a.T @ block @ b if turned else block
            out.append((a @ (v**power * block) @ b.T).ravel())
        return jnp.concatenate(out)

    def root(self, noise):
        return self._apply(noise, -0.5, turned=False)

    def times(self, columns):
        if columns.ndim == 1:
            return self._apply(columns, -1.0, turned=True)
        return jax.vmap(self.times, in_axes=1, out_axes=1)(columns)

    def quadratic(self, vector):
        return vector @ self._apply(vector, 1.0, turned=True)

    def scaled(self, factor):
        return Kronecker(tuple(v / factor for v in self.values), self.left, self.right)

    def with_precision(self, diagonal):
        raise ValueError("A Kronecker covariance takes no diagonal precision.")


def full(matrix: Array) -> Full:
    """Return a covariance given as a matrix."""
    tril = jnp.linalg.cholesky(matrix)
    return Full(jnp.tril(tril, -1) + jnp.diag(jnp.log(jnp.diagonal(tril))))
