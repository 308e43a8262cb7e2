"""Paths of hidden states given all data, made of what a particle filter saw.

References:
    Godsill, Doucet and West (2004), doi:10.1198/016214504000000151.
    Kitagawa and Sato (2001), fixed lag, doi:10.1007/978-1-4757-3437-9_9.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from ...core._feynman_kac import AbstractSequenceTarget
from ...core._types import Draw, PRNGKey
from ._filter import History


def ancestral_path(history: History, *, key: PRNGKey) -> PyTree:
    """Return the path that ends in one of the last particles, drawn by its weight.

    Exact as a law; but paths share their beginnings, since few of the first particles have
    descendants left.
    """
    return trace_back(history.state, history.ancestors, history.log_weights[-1], key=key)


def trace_back(
    states: PyTree, ancestors: Array, log_weights: Float[Array, " particle"], *, key: PRNGKey
) -> PyTree:
    """Return the path of one of the last particles, drawn by their weights.

    Args:
        states: `(time, particle, ...)`.
        ancestors: Indices at the time before; of time 0 not looked at, `(time, particle)`.
        log_weights: Of the last particles, in nats.
        key: A typed key.
    """
    last = jr.categorical(key, log_weights).astype(jnp.int32)
    back = lambda index, parents: (parents[index], index)
    _, indices = jax.lax.scan(back, last, ancestors, reverse=True)
    return jax.tree.map(lambda v: jax.vmap(lambda x, i: x[i])(v, indices), states)


def backward_path(
    sequence: AbstractSequenceTarget, draw: Draw, history: History, *, key: PRNGKey
) -> PyTree:
    """Return a path drawn backwards: each state by its weight times the way to the next."""
    length = len(history.ess)
    keys = jr.split(key, length)
    pick = lambda states, index: jax.tree.map(lambda v: v[index], states)
    states, logs = history.state, history.log_weights
    last = pick(pick(states, -1), jr.categorical(keys[-1], logs[-1]))

    def back(after, at):
        states, logs, time, key = at
        datum = sequence.datum(time)
        way = lambda state: sequence.log_transition(draw, state, after, time, datum)
        ways = jax.vmap(way)(states).astype(logs.dtype)
        ways = jnp.where(jnp.isnan(ways), -jnp.inf, ways)
        state = pick(states, jr.categorical(key, logs + ways))
        return state, state

    before = lambda tree: jax.tree.map(lambda v: v[:-1], tree)
    times = jnp.arange(1, length, dtype=jnp.int32)
    inputs = (before(states), logs[:-1], times, keys[:-1])
    _, path = jax.lax.scan(back, last, inputs, reverse=True)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), path, last)


def fixed_lag(history: History, lag: int) -> tuple[PyTree, Float[Array, "time particle"]]:
    """Return states with the weights that their descendants have `lag` steps later.

    Returns:
        States `(time, particle, ...)`, and normalised log weights `(time, particle)`.
    """
    length, num = history.log_weights.shape
    times = jnp.arange(length, dtype=jnp.int32)
    ends = jnp.minimum(times + lag, length - 1)
    own = jnp.broadcast_to(jnp.arange(num, dtype=jnp.int32)[None], (length, num))

    def back(step: Any, index: Array) -> Array:
        at = ends - step  # time that `index` counts particles of
        parents = jax.vmap(lambda t, i: history.ancestors[t][i])(at, index)
        return jnp.where((at > times)[:, None], parents, index)

    index = jax.lax.fori_loop(0, lag, back, own)
    states = jax.tree.map(lambda v: jax.vmap(lambda x, i: x[i])(v, index), history.state)
    return states, history.log_weights[ends]
