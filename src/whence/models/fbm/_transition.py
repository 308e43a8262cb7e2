"""The law of a linear equation and its bank of processes over any gap in time, exactly.

The state is X, `dX = (A X + c) dt + (pull) Y dt + (jump) dW`, and Y, the processes of the bank,
each with its rate. Over a gap, `X' = X + a X + R Y + m + noise` and `Y' = Y + e Y + noise`.
Over a very short gap h, power series give `a, R, m` and the covariance Q of the noise. With
`N = [[a, R], [0, diag(e)]]`, from h to 2h

    N <- 2 N + N N,    m <- 2 m + a m,    Q <- 2 Q + N Q + Q N' + N Q N'.

It is exact to rounding for fast and slow rates alike, where the usual exponential of a block
matrix overflows, and `N` in place of `I + N` keeps the digits of short gaps in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

ORDER, SMALL = 10, 0.25  # of the series; the largest norm times h that they are used at
# For rates times gap up to 65,000 and 8 million. Banks for close times have rates of a million
# a horizon, which may be one gap; most have none of the kind, and go without the rest.
DOUBLINGS, MOST_DOUBLINGS = 18, 25
DISTINCT = 12  # so many different gaps are worth looking for


class Transition(NamedTuple):
    """Leading axes are gaps. X has `component` entries, and the state those of Y after it."""

    top: Array  # `(gap, component, state)`, what X becomes of the state
    decay: Array  # `(gap, state - component)`, the factor of each entry of Y
    shift: Array  # `(gap, component)`, what is added to X
    covariance: Array  # of the noise, `(gap, state, state)`

    def move(self, mean: Array) -> Array:
        """Return the mean of the state after one gap."""
        x = times(self.top, mean) + self.shift
        return jnp.concatenate([x, self.decay * mean[len(x) :]])

    def spread(self, covariance: Array) -> Array:
        """Return the covariance of the state after one gap."""
        return self._rows(self._rows(covariance).T) + self.covariance

    def back(self, r: Array) -> Array:
        """Return the transpose of one gap's transition times vectors, `(state, ...)`."""
        d = len(self.top)
        decayed = self.decay.reshape(-1, *[1] * (r.ndim - 1)) * r[d:]
        return times(self.top.T, r[:d]) + jnp.concatenate([jnp.zeros_like(r[:d]), decayed])

    def _rows(self, matrix: Array) -> Array:
        below = self.decay[:, None] * matrix[len(self.top) :]
        return jnp.concatenate([times(self.top, matrix), below])

    @property
    def matrix(self) -> Array:
        """The whole transition of one gap, `(state, state)`."""
        below = jnp.pad(jnp.diag(self.decay), ((0, 0), (len(self.top), 0)))
        return jnp.concatenate([self.top, below])


def times(a: Array, b: Array) -> Array:
    """Return `a @ b` of small arrays with leading axes of `a`, faster than a call of BLAS."""
    if b.ndim < a.ndim:
        return jnp.sum(a * b[..., None, :], axis=-1)
    return jnp.sum(a[..., :, :, None] * b[..., None, :, :], axis=-2)


def transitions(
    drift: Array, shift: Array, spread: Array, gaps: Array, most: Array
) -> Transition:
    """Return the transition over each gap.

    Where few gaps differ, as on a grid with holes, each is computed once.
    """
    if len(gaps) <= DISTINCT:
        return _each(drift, shift, spread, gaps)
    grain = 2 * jnp.finfo(gaps.dtype).eps * most
    bins, where = jnp.unique(
        jnp.round(gaps / grain), size=DISTINCT + 1, return_inverse=True, fill_value=-1
    )
    where = jnp.minimum(where, DISTINCT)  # with more, `where` is not used
    # A product with zeros and ones: its transpose is one too, where that of a gather is slow.
    pick = (where[:, None] == jnp.arange(DISTINCT + 1)[None, :]).astype(gaps.dtype)
    mean = (gaps @ pick) / jnp.maximum(jnp.sum(pick, axis=0), 1.0)

    every = lambda gaps, mean: _each(drift, shift, spread, gaps)
    few = lambda gaps, mean: jax.tree.map(
        lambda v: jnp.tensordot(pick, v, 1), _each(drift, shift, spread, mean)
    )
    # Checkpointed: else a gradient would store what the way not taken would have needed.
    ways = map(jax.checkpoint, (few, every))
    return jax.lax.cond(bins[-1] < 0, *ways, gaps, mean)


def _each(drift: Array, shift: Array, spread: Array, gaps: Array) -> Transition:
    """Return the transition over each gap, whatever the others are."""
    dtype, size, d = gaps.dtype, len(drift), len(shift)
    fastest = jnp.maximum(jnp.max(jnp.abs(jnp.diagonal(drift))), jnp.finfo(dtype).tiny * 1e6)
    # In units of X in which the bank does not pull harder than it decays, norms are small.
    pull = jnp.sum(jnp.abs(drift[:d, d:]), axis=1) / fastest
    unit = jnp.concatenate([jnp.where(pull > 0, pull, 1.0), jnp.ones(size - d, dtype)])
    unit, fastest = jax.lax.stop_gradient((unit, fastest))
    f = drift * unit[None, :] / unit[:, None]
    norm = jnp.maximum(jax.lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(f), axis=1))), fastest)
    halvings = jnp.ceil(jnp.log2(jnp.maximum(norm * gaps / SMALL, 1.0)))
    too_far = halvings > MOST_DOUBLINGS
    halvings = jnp.minimum(halvings, MOST_DOUBLINGS)
    short = gaps / 2.0**halvings

    # Coefficients of (norm h)^j, j = 1 .. ORDER, of N, m and Q.
    f, b = f / norm, spread / unit[:, None]
    terms = [(f, shift / unit[:d] / norm, b @ b.T / norm)]
    for j in range(2, ORDER + 1):
        n, m, q = terms[-1]
        grown = f @ q
        terms.append((f @ n / j, f[:d, :d] @ m / j, (grown + grown.T) / j))
    powers = (norm * short)[:, None] ** jnp.arange(1, ORDER + 1, dtype=dtype)[None, :]
    n, m, q = (
        jnp.tensordot(powers, jnp.stack([term[i] for term in terms]), 1) for i in range(3)
    )
    rate = -jnp.diagonal(drift)[d:]
    e = jnp.expm1(-rate[None, :] * short[:, None])
    begin = (n[:, :d, :d], n[:, :d, d:], e, m, q[:, :d, :d], q[:, :d, d:], q[:, d:, d:])
    turn = lambda v: jnp.swapaxes(v, 1, 2)

    def double(carry, level):
        a, r, e, m, xx, xy, yy = carry
        ux, uy = times(a, xx) + times(r, turn(xy)), times(a, xy) + times(r, yy)
        both = (1 + e)[:, :, None] * (1 + e)[:, None, :]
        twice = (
            2 * a + times(a, a),
            2 * r + times(a, r) + r * e[:, None, :],
            2 * e + e * e,
            2 * m + times(a, m),
            2 * xx + ux + turn(ux) + times(ux, turn(a)) + times(uy, turn(r)),
            2 * xy + uy + (xy + uy) * e[:, None, :],
            yy * (1 + both),
        )
        active = level < halvings
        keep = lambda new, old: jnp.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)
        return jax.tree.map(keep, twice, carry), None

    levels = jnp.arange(MOST_DOUBLINGS, dtype=dtype)
    doubled = jax.lax.scan(double, begin, levels[:DOUBLINGS])[0]
    a, r, e, m, xx, xy, yy = jax.lax.cond(
        jnp.max(halvings) > DOUBLINGS,
        lambda carry: jax.lax.scan(double, carry, levels[DOUBLINGS:])[0],
        lambda carry: carry,
        doubled,
    )
    top = jnp.concatenate([a + jnp.eye(d, dtype=dtype)[None], r], axis=2)
    # No number is better than a wrong one: an engine rejects what is not finite.
    q = jnp.where(too_far[:, None, None], jnp.nan, jnp.block([[xx, xy], [turn(xy), yy]]))
    return Transition(
        top * (unit[:d, None] / unit[None, :])[None],
        1 + e,
        m * unit[None, :d],
        q * (unit[:, None] * unit[None, :])[None],
    )


def semidefinite_factor(matrix: Array) -> Array:
    """Return lower triangular L, `L L' = matrix`, of matrices that may be singular.

    A column whose pivot is rounding error is left out. Leading axes are batched.
    """
    size = matrix.shape[-1]
    least = 4 * size * jnp.finfo(matrix.dtype).eps * jnp.diagonal(matrix, axis1=-2, axis2=-1)
    rest, columns = matrix, []
    for k in range(size):
        pivot = rest[..., k, k]
        fine = (pivot > least[..., k])[..., None]
        column = rest[..., :, k] / jnp.sqrt(jnp.where(fine, pivot[..., None], 1.0))
        below = jnp.broadcast_to(jnp.arange(size) >= k, column.shape)
        column = jnp.where(fine & below, column, 0.0)
        rest = rest - column[..., :, None] * column[..., None, :]
        columns.append(column)
    return jnp.stack(columns, axis=-1)
