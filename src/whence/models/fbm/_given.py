"""Draws of a linear equation and its data, with and without conditions."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from ...core._types import PRNGKey
from ..linear_gaussian import _kalman as kalman
from ._transition import semidefinite_factor


def unconditional(linear: kalman.System, key: PRNGKey) -> tuple[Array, Array]:
    """Draw state and data of a linear system, `(time, state)` and `(time, channel)`."""
    key_start, key_steps, key_noise = jr.split(key, 3)
    dtype, size, count = linear.mean.dtype, len(linear.mean), len(linear.steps.shift)
    draw = lambda key, *shape: jr.normal(key, shape, dtype)
    state = linear.mean + semidefinite_factor(linear.covariance) @ draw(key_start, size)
    factors = semidefinite_factor(linear.steps.covariance)
    noise = jnp.einsum("tij,tj->ti", factors, draw(key_steps, count, size))

    def step(state, inputs):
        move, noise = inputs
        state = move.move(state) + noise
        return state, state

    _, states = jax.lax.scan(step, state, (linear.steps, noise))
    error = jnp.sqrt(linear.variance)[None] * draw(key_noise, count, len(linear.variance))
    return states, states @ linear.sight.T + linear.offset[None] + error


@jax.custom_batching.sequential_vmap
def draw_given(linear, y, seen, key_data) -> Array:
    """Draw new data at all times given those that are seen; one draw at a time in memory.

    A path and data are drawn without any condition; the path is then moved by what the
    smoother makes of the difference between the observed data and the drawn ones.

    References:
        Durbin and Koopman (2002), doi:10.1093/biomet/89.3.603.
    """
    key, key_noise = jr.split(jr.wrap_key_data(key_data))
    states, drawn = unconditional(linear, key)
    still = eqx.tree_at(
        lambda s: (s.mean, s.steps.shift, s.offset),
        linear,
        replace_fn=jnp.zeros_like,
    )
    size = len(linear.mean)
    moved = states + kalman.smooth(still, y - drawn, seen, size).mean
    error = jnp.sqrt(linear.variance)[None] * jr.normal(key_noise, y.shape, y.dtype)
    return moved @ linear.sight.T + linear.offset[None] + error


@jax.custom_batching.sequential_vmap
def given_rest(linear, y, seen) -> Array:
    return kalman.smooth(linear, y, seen, 1).rest
