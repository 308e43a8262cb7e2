"""Kalman's filter and smoother of a state observed with independent Gaussian noise."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

LOG_2PI = 1.8378770664093453


class Dense(NamedTuple):
    """Transitions `matrix @ state + shift + noise`, whose leading axis is time."""

    matrix: Array  # `(time, state, state)`
    shift: Array  # `(time, state)`
    covariance: Array  # of the noise, `(time, state, state)`

    def move(self, mean: Array) -> Array:
        """Return the mean of the state after one transition."""
        return self.matrix @ mean + self.shift

    def spread(self, covariance: Array) -> Array:
        """Return the covariance of the state after one transition."""
        return self.matrix @ covariance @ self.matrix.T + self.covariance


class System(eqx.Module):
    """A linear Gaussian state at increasing times, and what is seen of it.

    What is seen may have a leading axis of times in `log_evidence_in_parallel`.

    Attributes:
        mean: Of the state before the first transition, `(state,)`.
        covariance: Of the same.
        steps: Transitions to each time from the one before it, `(time, ...)`: `Dense`, or of
            a form of their own with the same methods (and `back`, for `smooth`).
        sight: `(channel, state)`: channel j observes `sight[j] @ state + offset[j] + noise`.
        offset: `(channel,)`.
        variance: Of the noise, `(channel,)`; with times `(time, channel, channel)`.
    """

    mean: Array
    covariance: Array
    steps: Any
    sight: Array
    offset: Array
    variance: Array


class _Update(NamedTuple):
    """What the smoother needs of one scalar observation."""

    gain: Array
    residual: Array
    spread: Array
    seen: Array


def _update(system: System, mean: Array, covariance: Array, y: Array, seen: Array):
    """Return state and log density after the channels of one time, one by one."""
    channels = len(system.variance)
    updates, total = [], jnp.zeros((), y.dtype)
    for j in range(channels):
        row = system.sight[j]
        product = jnp.sum(covariance * row[None, :], axis=-1)
        spread = jnp.sum(row * product) + system.variance[j]
        residual = y[j] - jnp.sum(row * mean) - system.offset[j]
        gain = jnp.where(seen[j], product / spread, jnp.zeros_like(product))
        term = -0.5 * (LOG_2PI + jnp.log(spread) + residual**2 / spread)
        total = total + jnp.where(seen[j], term, jnp.zeros_like(term))
        mean = mean + gain * residual
        covariance = covariance - gain[:, None] * product[None, :]
        updates.append(_Update(gain, residual, spread, seen[j]))
    return mean, covariance, total, updates


def log_evidence(system: System, y: Array, seen: Array) -> Array:
    """Return the log density of all that is seen, in nats, one time after the other.

    Args:
        system: The system.
        y: `(time, channel)`; what is not seen may be any finite number.
        seen: `(time, channel)`, whether it was observed.

    References:
        Kalman (1960), doi:10.1115/1.3662552.
    """

    def step(carry, inputs):
        mean, covariance = carry
        move, y, seen = inputs
        mean, covariance = move.move(mean), move.spread(covariance)
        mean, covariance, term, _ = _update(system, mean, covariance, y, seen)
        return (mean, covariance), term

    start = (system.mean, system.covariance)
    return long_sum(jax.lax.scan(step, start, (system.steps, y, seen))[1])


def long_sum(terms: Array) -> Array:
    """Return the sum of a vector by way of sums of parts: float32 keeps more of many terms."""
    size = math.isqrt(len(terms)) + 1
    padded = jnp.pad(terms, (0, -len(terms) % size))
    return jnp.sum(jnp.sum(padded.reshape(-1, size), axis=1))


def log_evidence_in_parallel(system: System, y: Array, seen: Array) -> Array:
    """Return the same as `log_evidence` by an associative scan, for accelerators.

    References:
        Särkkä and García-Fernández (2021), doi:10.1109/TAC.2020.2976316.
    """
    moves, size = system.steps, len(system.mean)
    identity = jnp.eye(size, dtype=y.dtype)
    # What is not seen is a channel that looks at nothing.
    each = lambda v, rank: jnp.broadcast_to(v, (len(y), *v.shape[v.ndim - rank :]))
    sight = jnp.where(seen[..., None], each(system.sight, 2), jnp.zeros((), y.dtype))
    noise = system.variance
    noise = noise if noise.ndim == 3 else jnp.diag(noise)[None]
    both = seen[:, :, None] & seen[:, None, :]
    noise = jnp.where(both, noise, jnp.eye(y.shape[1], dtype=y.dtype)[None])
    centred = jnp.where(seen, y - each(system.offset, 1), jnp.zeros((), y.dtype))

    def element(move, sight, noise, y, first):
        # Before the first time there is one state, of known law: it has no transition.
        none = jnp.zeros_like(system.mean)
        mean = jnp.where(first, move.move(system.mean), move.move(none))
        spread = jnp.where(first, move.spread(system.covariance), move.covariance)
        matrix = jnp.where(first, jnp.zeros_like(move.matrix), move.matrix)
        s = sight @ spread @ sight.T + noise
        weights = jnp.linalg.solve(s, sight)  # (channel, state)
        rest = identity - spread @ sight.T @ weights
        residual = y - sight @ mean
        back = matrix.T @ weights.T
        return (
            rest @ matrix,
            mean + spread @ weights.T @ residual,
            rest @ spread,
            back @ residual,
            back @ sight @ matrix,
        )

    def join(before, after):
        a, b, c, eta, j = before
        a2, b2, c2, eta2, j2 = after
        mixed = jnp.linalg.solve(identity + c @ j2, identity)
        left = a2 @ mixed
        right = a.T @ mixed.T
        return (
            left @ a,
            left @ (b + c @ eta2) + b2,
            left @ c @ a2.T + c2,
            right @ (eta2 - j2 @ b) + eta,
            right @ j2 @ a + j,
        )

    first = jnp.arange(len(y)) == 0
    elements = jax.vmap(element)(moves, sight, noise, centred, first)
    _, means, covariances, _, _ = jax.lax.associative_scan(jax.vmap(join), elements)
    means = jnp.concatenate([system.mean[None], means[:-1]])
    covariances = jnp.concatenate([system.covariance[None], covariances[:-1]])

    def term(move, mean, covariance, sight, noise, y, seen):
        mean, covariance = move.move(mean), move.spread(covariance)
        factor = jnp.linalg.cholesky(sight @ covariance @ sight.T + noise)
        white = solve_triangular(factor, y - sight @ mean, lower=True)
        logs = LOG_2PI / 2 + jnp.log(jnp.diagonal(factor))
        return -jnp.sum(jnp.where(seen, logs, jnp.zeros_like(logs))) - 0.5 * white @ white

    return long_sum(jax.vmap(term)(moves, means, covariances, sight, noise, centred, seen))


class Smoothed(NamedTuple):
    """First entries of the state given all observations; each observation given all others."""

    mean: Array  # `(time, entry)`
    covariance: Array  # `(time, entry, entry)`
    rest: Array  # log density of each observation given all others, `(time, channel)`


def smooth(system: System, y: Array, seen: Array, entries: int) -> Smoothed:
    """Return the law of the state's first entries at each time given all that is seen.

    The backward recursion inverts no covariance: those of the bank are singular at short
    gaps.

    References:
        de Jong (1989), doi:10.1080/01621459.1989.10478878; the deleted residuals too.
    """

    def forward(carry, inputs):
        mean, covariance = carry
        move, y, seen = inputs
        mean, covariance = move.move(mean), move.spread(covariance)
        predicted = mean[:entries], covariance[:entries]
        mean, covariance, _, updates = _update(system, mean, covariance, y, seen)
        stacked = jax.tree.map(lambda *v: jnp.stack(v), *updates)
        return (mean, covariance), (predicted, stacked)

    start = (system.mean, system.covariance)
    _, (predicted, updates) = jax.lax.scan(forward, start, (system.steps, y, seen))

    def backward(carry, inputs):
        r, n = carry
        move, (mean, covariance), updates = inputs
        rest = []
        for j in reversed(range(len(system.variance))):
            update = jax.tree.map(lambda v: v[j], updates)
            row = system.sight[j]
            smoothed = update.residual / update.spread - update.gain @ r
            precision = 1 / update.spread + update.gain @ n @ update.gain
            logs = jnp.log(precision) - LOG_2PI - smoothed**2 / precision
            rest.append(jnp.where(update.seen, 0.5 * logs, jnp.zeros_like(logs)))
            # (I - gain row)' r + row residual / spread; a channel not seen changes nothing.
            smoothed = jnp.where(update.seen, smoothed, jnp.zeros_like(smoothed))
            r = r + row * smoothed
            left = n - (n @ update.gain)[:, None] * row[None, :]
            left = left - row[:, None] * (update.gain @ left)[None, :]
            seen = jnp.where(update.seen, 1 / update.spread, jnp.zeros_like(precision))
            n = left + row[:, None] * row[None, :] * seen
        spread = covariance[:, :entries] - covariance @ n @ covariance.T
        state = mean + covariance @ r, spread
        return (move.back(r), move.back(move.back(n).T)), (*state, jnp.stack(rest[::-1]))

    none = jnp.zeros_like(system.mean), jnp.zeros_like(system.covariance)
    inputs = (system.steps, predicted, updates)
    _, found = jax.lax.scan(backward, none, inputs, reverse=True)
    return Smoothed(*found)
