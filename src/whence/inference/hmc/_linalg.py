"""Small dense factorisations in plain array operations.

One LAPACK call anywhere in a loop keeps XLA from compiling the loop into a single kernel,
which triples the time of a cheap model's transition, and LAPACK's threads fight with ours.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_MAX_SWEEPS = 20


def cholesky(matrix: Float[Array, "dim dim"]) -> Float[Array, "dim dim"]:
    """Return the lower Cholesky factor; not finite if `matrix` is not positive definite."""
    index = jnp.arange(matrix.shape[0])

    def body(j, factor):
        column = matrix[:, j] - factor @ factor[j]
        column = jnp.where(index >= j, column, 0) / jnp.sqrt(column[j])
        return factor.at[:, j].set(column)

    return lax.fori_loop(0, matrix.shape[0], body, jnp.zeros_like(matrix))


def orthogonalise(rows: Float[Array, "dim dim"]) -> Float[Array, "dim dim"]:
    """Rotate the rows among themselves until they are orthogonal.

    With `rows = V S U^T` the result is `S U^T` up to the order of its rows: one-sided
    Jacobi rotations, accurate even if the singular values span many orders of magnitude.

    References:
        Hestenes (1958), doi:10.1137/0106005.
        Demmel and Veselic (1992), doi:10.1137/0613074, on its accuracy.
    """
    dim, tolerance = rows.shape[0], 10 * jnp.finfo(rows.dtype).eps
    num_pairs = dim * (dim - 1) // 2

    def rotate(_, carry):
        rows, i, j, worst = carry
        a, b = rows[i], rows[j]
        aa, bb, ab = jnp.sum(a * a), jnp.sum(b * b), jnp.sum(a * b)
        cosine = jnp.abs(ab) / jnp.sqrt(aa * bb)
        zeta = (bb - aa) / (2 * ab)
        tangent = jnp.where(zeta < 0, -1, 1) / (jnp.abs(zeta) + jnp.sqrt(1 + zeta * zeta))
        tangent = jnp.where(cosine > tolerance, tangent, 0)
        c = 1 / jnp.sqrt(1 + tangent * tangent)
        s = c * tangent
        rows = rows.at[i].set(c * a - s * b).at[j].set(s * a + c * b)
        is_row_done = j + 1 == dim
        i, j = jnp.where(is_row_done, i + 1, i), jnp.where(is_row_done, i + 2, j + 1)
        return rows, i, j, jnp.maximum(worst, cosine)

    def sweep(carry):
        rows, count, _ = carry
        first = (rows, jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32), zero)
        rows, _, _, worst = lax.fori_loop(0, num_pairs, rotate, first)
        return rows, count + 1, worst

    zero = jnp.zeros((), rows.dtype)
    start = (rows, jnp.zeros((), jnp.int32), zero + 1)
    going = lambda carry: (carry[1] < _MAX_SWEEPS) & (carry[2] > tolerance)
    return lax.while_loop(going, sweep, start)[0]


def matmul(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """Return the matrix product without a call of a library; see the head of the file."""
    return jnp.sum(a[:, :, None] * b[None], axis=1)
