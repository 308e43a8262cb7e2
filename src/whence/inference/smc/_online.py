"""Filters that take in one datum at a time, as they come."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array

from ...core._cache import compiled
from ...core._feynman_kac import SequenceAt
from ...core._key import as_key
from ...core._types import PRNGKey
from ._driver import Cloud
from ._filter import AbstractFilter, at_draws, log_evidence_error, move_on, run_filter
from ._states import States, moments, require_alive


class OnlineState(eqx.Module):
    """Where an online filter stands.

    Attributes:
        settings: The filter.
        at: The sequence and draws of its parameters. The weights of the draws follow the data
            that came since: draws of a posterior stay draws of the posterior.
        clouds: Particles for each draw.
        time: Number of the last datum.
        key: Of the whole run.
    """

    settings: AbstractFilter
    at: SequenceAt
    clouds: Cloud
    time: Array
    key: PRNGKey

    @property
    def states(self) -> States:
        """The hidden state now: as `whence.filter` returns it, with one time."""
        points, logs = self.clouds.particles.state, self.clouds.log_weights
        mean, variance = jax.vmap(lambda v, w: moments(v[None], w[None]))(points, logs)
        error = jax.vmap(log_evidence_error)(self.clouds)
        return States(
            mean,
            variance,
            jax.tree.map(lambda v: v[:, None], points),
            logs[:, None],
            self.at.log_weights,
            jax.vmap(lambda cloud: cloud.log_evidence.value)(self.clouds),
            error,
        )


def start_online(settings: AbstractFilter, target: Any, key: Any) -> OnlineState:
    """Return the state after the data of the target."""
    key, at = as_key(key), at_draws(target)
    settings.validate(at.sequence)
    clouds, increments = compiled(_first, settings, at, key).call(settings, at, key)
    require_alive(increments, at.sequence)
    return OnlineState(
        settings, at, clouds, jnp.asarray(at.sequence.num_times - 1, jnp.int32), key
    )


def update_online(state: OnlineState, y: Any, inputs: Any, time: Any) -> OnlineState:
    """Return the state after one datum more."""
    if not isinstance(state, OnlineState):
        raise ValueError(f"`state` must come from `filter.start`; got {type(state).__name__}.")
    last = int(state.time)
    if time is not None and int(time) != last + 1:
        raise ValueError(
            f"`time` must be {last + 1}, the one after the last: a filter does not go back in "
            f"time, nor leap (a datum of NaN is one that is missing); got {time}."
        )
    datum = state.at.sequence.as_datum(y, inputs)
    clouds, increments = compiled(_next, state, datum).call(state, datum)
    require_alive(np.asarray(increments)[:, None], state.at.sequence, last + 1)
    at = state.at
    logs = at.log_weights + increments.astype(at.log_weights.dtype)
    at = SequenceAt(at.sequence, at.positions, logs - logsumexp(logs))
    return OnlineState(state.settings, at, clouds, state.time + 1, state.key)


def _first(settings, at, key):
    def one(pair):
        draw = at.sequence.constrain(pair[0])
        cloud, history = run_filter(settings, at.sequence, draw, key=pair[1])
        return cloud, history.log_evidence

    return jax.lax.map(one, (at.positions, jr.split(key, len(at.log_weights))))


def _next(state: OnlineState, datum: Any) -> tuple[Cloud, Array]:
    settings, at, time = state.settings, state.at, state.time + 1

    def one(triple):
        position, cloud, key = triple
        draw = at.sequence.constrain(position)
        cloud, did = move_on(settings, at.sequence, draw, cloud, time, datum, key=key)
        return cloud, did.log_evidence_increment

    keys = jr.split(state.key, len(at.log_weights))
    return jax.lax.map(one, (at.positions, state.clouds, keys))
