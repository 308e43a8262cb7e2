"""Paths of an equation driven by the bank, step by step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from ...core._types import PRNGKey
from ._bank import Bank
from ._linear import driver_weights, initial, is_additive, value
from ._transition import semidefinite_factor


def bank_steps(bank: Bank, gaps: Array) -> tuple[Array, Array]:
    """Return decay `(step, node)` of the processes over gaps, and factors of their noise.

    The step is exact: rates however large need no short steps.
    """
    g = bank.rates
    total = g[:, None] + g[None, :]
    safe = jnp.where(total > 0, total, jnp.ones_like(total))[None]
    length = gaps[:, None, None]
    shared = jnp.where(total[None] > 0, -jnp.expm1(-safe * length) / safe, length)
    both = bank.scales[:, None] * bank.scales[None, :]
    decay = jnp.exp(-g[None, :] * gaps[:, None])
    return decay, semidefinite_factor(both[None] * shared)


def draw_paths(
    model: Any, bank: Bank, times: Array, start: Array, key: PRNGKey, paths: int, steps: int
) -> Array:
    """Return the state at each time, `(path, time, component)`.

    Steps go from each point of the union of an even grid and the times to the next. Where
    the diffusion is constant, `Z = X - sigma B` follows an ordinary equation, which the
    classical Runge-Kutta rule solves with B at the ends and in the middle of each step; else
    it is Heun's rule, which converges to the Stratonovich solution.

    Args:
        model: A `FractionalSDE` with values.
        bank: Of its noise.
        times: `(time,)`, increasing.
        start: Where the equation begins.
        key: A typed key.
        paths: Number of paths.
        steps: Number of even steps, those to the times not counted.

    References:
        Rößler (2010), doi:10.1137/09076636X, on Stratonovich schemes; Doss (1977) and
        Sussmann (1978), doi:10.1214/aop/1176995608, on the change of variable.
    """
    dtype = times.dtype
    loc, scale = initial(model, dtype)
    d, k = len(loc), len(bank.rates)
    weights = driver_weights(bank, d)
    even = start + (times[-1] - start) * jnp.linspace(0.0, 1.0, steps + 1, dtype=dtype)
    grid = jnp.sort(jnp.concatenate([even, times]))
    gaps = jnp.diff(grid, prepend=start[None])
    additive = is_additive(model, jnp.zeros((), dtype), jnp.zeros_like(loc))
    parts = 2 if additive else 1
    decay, factor = bank_steps(bank, gaps / parts)
    every = lambda name: jax.vmap(lambda t, x: value(model, name, t, x), (None, 0))
    drift, diffusion = every("drift"), every("diffusion")

    def advance(y, decay, factor, key):
        noise = jr.normal(key, (paths * d, k), dtype) @ factor.T
        new = decay[None, None] * y + noise.reshape(paths, d, k)
        return new, jnp.sum(weights[None] * (new - y), axis=-1)

    @jax.checkpoint
    def step(carry, inputs):
        x, y = carry
        t, h, decay, factor, key = inputs
        keys = jr.split(key, 2)
        y, moved = advance(y, decay, factor, keys[0])
        if not additive:
            b, s = drift(t, x), diffusion(t, x)
            guess = x + h * b + s * moved
            b = (b + drift(t + h, guess)) / 2
            x = x + h * b + (s + diffusion(t + h, guess)) / 2 * moved
            return (x, y), x
        s = diffusion(t, x)
        middle = s * moved
        y, moved = advance(y, decay, factor, keys[1])
        end = middle + s * moved
        b1 = drift(t, x)
        b2 = drift(t + h / 2, x + h / 2 * b1 + middle)
        b3 = drift(t + h / 2, x + h / 2 * b2 + middle)
        b4 = drift(t + h, x + h * b3 + end)
        x = x + h / 6 * (b1 + 2 * b2 + 2 * b3 + b4) + end
        return (x, y), x

    key_x, key_y, key_steps = jr.split(key, 3)
    x = loc[None] + scale[None] * jr.normal(key_x, (paths, d), dtype)
    y = jr.normal(key_y, (paths * d, k), dtype) @ bank.initial_factor().T
    inputs = (grid - gaps, gaps, decay, factor, jr.split(key_steps, len(grid)))
    _, found = jax.lax.scan(step, (x, y.reshape(paths, d, k)), inputs)
    return jnp.swapaxes(found[jnp.searchsorted(grid, times, side="right") - 1], 0, 1)
