"""Linear systems and log determinants by products only: preconditioned, with error bounds.

With A = K + noise I and L L' a part of K (K - L L' is positive semidefinite), let
P = L L' + noise I, W = P^(-1/2) and B = W A W. Then B is at least the identity, so a residual
r of B u = b leaves an error of at most |r|^2 in the quadratic form b' B^-1 b.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ....core._types import PRNGKey
from ._kernel import KernelTiles

PIVOTS_AT_A_TIME = 128  # pivots drawn at a time


def random_pivots(kernel: KernelTiles, rank: int, *, key: PRNGKey) -> Array:
    """Return L with L L' near the kernel, by randomly pivoted partial Cholesky in blocks.

    References:
        Chen, Epperly, Tropp, Webber (2023), Randomly pivoted Cholesky, arXiv:2207.06503,
        algorithm 4.
    """
    x = jnp.concatenate(kernel.blocks)[: kernel.size]
    left, factor = kernel.diagonal, jnp.zeros((kernel.size, 0), kernel.diagonal.dtype)
    for start in range(0, rank, PIVOTS_AT_A_TIME):
        key, key_pivots = jr.split(key)
        # The largest of log weight plus Gumbel noise: draws without replacement.
        noise = jr.gumbel(key_pivots, left.shape, left.dtype)
        score = jnp.log(jnp.maximum(left, jnp.finfo(left.dtype).tiny)) + noise
        pivots = jax.lax.top_k(score, min(PIVOTS_AT_A_TIME, rank - start))[1]
        columns = kernel.cross(x[pivots])
        factor, left = _extend(factor, left, columns, kernel.diagonal, pivots)
    return factor


@jax.jit
def _extend(factor, left, columns, diagonal, pivots):
    columns = columns - factor @ factor[pivots].T
    corner = columns[pivots]
    corner = (corner + corner.T) / 2
    dtype = corner.dtype
    # Pivots that all but coincide: what is added keeps L L' below the kernel. Kernels round
    # more than sums do, where inputs are far from zero: to below zero by many such units.
    rounding = 100 * jnp.finfo(dtype).eps * jnp.max(diagonal)
    jitter = jnp.maximum(rounding, -2 * jnp.linalg.eigvalsh(corner)[0])
    tril = jnp.linalg.cholesky(corner + jitter * jnp.eye(len(corner), dtype=dtype))
    new = solve_triangular(tril, columns.T, lower=True).T
    left = jnp.maximum(left - jnp.sum(new**2, axis=1), 0)
    return jnp.concatenate([factor, new], axis=1), left.at[pivots].set(0)


class Whitener(eqx.Module):
    """W, the inverse root of `L L' + noise I`, as `(I - F F') / sqrt(noise)`."""

    root: Float[Array, "rows rank"]  # f, shape `(rows, rank)`
    noise: Float[Array, ""]  # positive
    log_det: Float[Array, ""]  # of `L L' + noise I`

    @eqx.filter_jit
    def __call__(self, vectors: Array) -> Array:
        """Apply W to columns."""
        return (vectors - self.root @ (self.root.T @ vectors)) / jnp.sqrt(self.noise)


@jax.jit
def whitener(factor: Float[Array, "rows rank"], noise: Float[Array, ""]) -> Whitener:
    """Return W for a factor L."""
    values, vectors = jnp.linalg.eigh(factor.T @ factor)
    values = jnp.maximum(values, 0)
    shrunk = 1 - jnp.sqrt(noise / (noise + values))
    # Of directions that L hardly has, shrunk / values tends to 1 / (2 noise).
    ratio = jnp.where(values > 1e-10 * noise, shrunk / jnp.maximum(values, 1e-300), 0.5 / noise)
    log_det = len(factor) * jnp.log(noise) + jnp.sum(jnp.log1p(values / noise))
    return Whitener(factor @ (vectors * jnp.sqrt(ratio)), noise, log_det)


class Solution(NamedTuple):
    """Of `B u = b`, one system per column."""

    solution: Float[Array, "rows columns"]  # u
    quadratic: np.ndarray  # `b' B^-1 b`, from below
    error: np.ndarray  # bound of what `quadratic` lacks
    # diagonals and off-diagonals of the tridiagonal matrices of each column
    lanczos: list[tuple[np.ndarray, np.ndarray]]
    steps: int  # products with B


def conjugate_gradients(
    multiply: Callable[[Array], Array],
    right: Float[Array, "rows columns"],
    finished: Callable[[np.ndarray, np.ndarray, int], bool],
    *,
    max_steps: int,
) -> Solution:
    """Solve `B u = b` for all columns at once, B at least the identity.

    Args:
        multiply: Product with B.
        right: b.
        finished: Of the quadratic forms, the bounds of their errors, and the steps done.
        max_steps: Products with B at most.

    References:
        Hestenes, Stiefel (1952), doi:10.6028/jres.049.044. Gardner, Pleiss, Bindel,
        Weinberger, Wilson (2018), arXiv:1809.11165, for many right-hand sides and Lanczos
        matrices from their coefficients.
    """
    solution = jnp.zeros_like(right)
    residual = direction = right
    first = error = np.asarray(jnp.sum(right**2, axis=0))
    quadratic = np.zeros_like(error)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    floor = (10 * float(np.finfo(first.dtype).eps)) ** 2 * first
    while len(steps) < max_steps and not finished(quadratic, error, len(steps)):
        going = error > floor  # a column done to rounding stands still
        image = multiply(direction)
        curvature = np.asarray(jnp.sum(direction * image, axis=0))
        length = np.where(going, error / np.where(going, curvature, 1), 0)
        solution, residual = _advance(solution, residual, direction, image, length)
        new = np.asarray(jnp.sum(residual**2, axis=0))
        ratio = np.where(going, new / np.where(going, error, 1), 0)
        direction = residual + ratio * direction
        steps.append((length, ratio))
        error = np.where(going, new, error)
        # Twice b'u less u'Bu: errs by the square of what u lacks.
        quadratic = np.asarray(jnp.sum((right + residual) * solution, axis=0))
        if not going.any():
            break
    lanczos = [_tridiagonal(steps, column) for column in range(right.shape[1])]
    return Solution(solution, quadratic, error, lanczos, len(steps))


@jax.jit
def _advance(solution, residual, direction, image, length):
    return solution + length * direction, residual - length * image


def _tridiagonal(steps, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the Lanczos matrix of a column, in the basis of its residuals."""
    lengths = np.array([length[column] for length, _ in steps])
    ratios = np.array([ratio[column] for _, ratio in steps])
    count = int(np.sum(lengths > 0))
    lengths, ratios = lengths[:count], ratios[:count]
    diagonal = 1 / lengths
    diagonal[1:] += ratios[:-1] / lengths[:-1]
    return diagonal, np.sqrt(ratios[:-1]) / lengths[:-1]
