"""The law of the noise given the data, of an equation made affine: the optimal control.

With `s_k = F s_(k-1) + G e_k + a` and standard normal `e_k`, and log densities of the data that
are quadratic in the state, the noise given the data is

    e_k ~ Normal(K_k s_(k-1) + c_k, (L_k L_k')^-1),

found backwards in time. In the limit of short steps the mean is the optimal control times the
step and the covariance the identity. Of an equation that is affine it is exact, so that the
weight of every path is the evidence; else it is of first order along a path, which is made
again with it. No gradient passes through that path: it is a place, near the best one.

References:
    Bellman (1957), Dynamic programming. Bell (1994), doi:10.1137/0804035, on such a path as
    Gauss-Newton's method. Daems, Opper, Crevecoeur and Birdal (2025), arXiv:2505.17150: as the
    start of a control.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array

from ...core._dtype import relaxed
from ._bank import Bank
from ._linear import initial
from ._path import Steps, advance, datum_term, scan, start_size, started


class Guide(NamedTuple):
    """Laws of the noise, of the start and of each step (leading axis); None as in the prior."""

    start_mean: Array | None = None  # `(number,)`
    start_root: Array | None = None  # L of its precision, `(number, number)`
    gain: Array | None = None  # K, `(step, number, state)`
    mean: Array | None = None  # c, `(step, number)`
    root: Array | None = None  # L, `(step, number, number)`


def stacked(x: Array, y: Array) -> Array:
    """Return state and bank as one vector."""
    return jnp.concatenate([x, y.ravel()])


def guide_of(
    model: Any,
    bank: Bank,
    steps: Steps,
    data: tuple[Array, Array, Array | None],
    rounds: int,
) -> Guide:
    """Return the laws of the noise given data of one series."""
    loc, _ = initial(model, steps.gap.dtype)
    d, k, length = len(loc), len(bank.rates), len(steps.gap)
    size = d * (1 + k)
    split = lambda s: (s[:d], s[d:].reshape(d, k))
    begin = lambda white: stacked(*started(model, bank, white))
    count = start_size(model, d, k)

    def move(step, s, e):
        return stacked(*advance(model, step, *split(s), e.reshape(d, k) @ step.factor.T))

    def affine(function, *at):
        value = function(*at)
        with relaxed():
            slopes = jax.jacfwd(function, tuple(range(len(at))))(*at)
        return value - sum(m @ v for m, v in zip(slopes, at)), *slopes

    at, y, seen = data

    def seen_from(x, y, seen):
        """Return linear and quadratic coefficients of the log density of data, near x."""
        f = lambda x: datum_term(model, x, y, seen)
        with relaxed():
            slope, bend = jax.grad(f)(x), -jax.hessian(f)(x)
        if d == 1:
            bend = jnp.maximum(bend, 0.0)
        else:  # directions along which it is not concave say nothing
            axes = jax.lax.stop_gradient(jnp.linalg.eigh(bend)[1])
            along = jnp.sum(axes * (bend @ axes), axis=0)
            bend = bend + (axes * jnp.maximum(-along, 0.0)[None]) @ axes.T
        return slope + bend @ x, bend

    def one_round(path, noise):
        r, p = jax.vmap(seen_from)(path[at, :d], y, seen)
        rs = jnp.zeros((length + 1, size), r.dtype).at[at, :d].add(r)
        ps = jnp.zeros((length + 1, size, size), r.dtype).at[at, :d, :d].add(p)
        a, f, g = jax.vmap(lambda *v: affine(lambda s, e: move(v[0], s, e), *v[1:]))(
            steps, path[:-1], noise
        )

        def law(carry, a, g):
            p, r = carry
            pg = p @ g
            root = jnp.linalg.cholesky(jnp.eye(g.shape[1], dtype=g.dtype) + g.T @ pg)
            left = r - p @ a
            solved = cho_solve((root, True), jnp.concatenate([pg.T, (g.T @ left)[:, None]], 1))
            return root, pg, left, solved[:, :-1], solved[:, -1]

        def back(carry, inputs):
            a, f, g, p_before, r_before = inputs
            root, pg, left, by_state, mean = law(carry, a, g)
            p = f.T @ (carry[0] - pg @ by_state) @ f
            r = f.T @ (left - pg @ mean)
            return ((p + p.T) / 2 + p_before, r + r_before), (-by_state @ f, mean, root)

        inputs = (a, f, g, ps[:-1], rs[:-1])
        flip = lambda tree: jax.tree.map(lambda v: v[::-1], tree)
        carry, found = scan(back, (ps[-1], rs[-1]), flip(inputs))
        a0, g0 = affine(begin, jnp.zeros(count, r.dtype))
        root, _, _, _, mean = law(carry, a0, g0)
        return Guide(mean, root, *flip(found))

    def along(guide):
        """Return the path without noise of its own."""
        first = begin(guide.start_mean)

        def one(s, inputs):
            step, gain, mean = inputs
            e = gain @ s + mean
            s = move(step, s, e)
            return s, (s, e)

        _, (path, noise) = scan(one, first, (steps, guide.gain, guide.mean))
        return jnp.concatenate([first[None], path]), noise

    path = jnp.broadcast_to(begin(jnp.zeros(count, loc.dtype)), (length + 1, size))
    near = path, jnp.zeros((length, d * k), loc.dtype)
    if rounds:
        again = lambda near, _: (along(one_round(*near)), None)
        near = jax.lax.stop_gradient(jax.lax.scan(again, near, length=rounds)[0])
    return one_round(*near)


def whitened(root: Array | None, mean: Array, e: Array) -> Array:
    """Return the standard normal numbers behind noise of a law."""
    return e - mean if root is None else root.T @ (e - mean)


def coloured(root: Array | None, mean: Array, z: Array) -> Array:
    """Return noise of a law made of standard normal numbers."""
    if root is None:
        return mean + z
    return mean + solve_triangular(root, z, lower=True, trans=1)
