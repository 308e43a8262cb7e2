"""Kalman's filter in square-root form, and the law of the path given the data.

Covariances are kept as factors, P = L L', and only rotated: with `tria(A)` the square lower
triangle with `tria(A) tria(A)' = A A'`, one step from x to x' = F x + b + noise, seen as
y = H x' + d + noise, is

    tria [ R^(1/2)  H F L  H Q^(1/2) ]   =   [ S^(1/2)       0    ]
         [    0      F L     Q^(1/2) ]       [ K S^(1/2)   L_new  ]

so that nothing is subtracted, and float32 keeps half as many digits more as it would of P.
Given x', the state before is E x' + (m - E (F m + b)) + D noise, where

    tria [ F L  Q^(1/2) ]   =   [ P1   0 ],     E = P2 P1^-1.
         [  L      0    ]       [ P2   D ]

These kernels do not depend on each other; smoothing moments and paths are chains of them.

References:
    Kailath, Sayed and Hassibi (2000), Linear Estimation, chapter 12.
    Yaghoobi, Corenflos, Hassan and Särkkä (2022), Parallel square-root statistical linear
    regression for inference in nonlinear state space models, arXiv:2207.00426.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from ...core._types import PRNGKey, Scalar
from ._kalman import LOG_2PI, Dense, System, long_sum


class Factored(eqx.Module):
    """A linear Gaussian state at each time, and what is seen of it; noise by its factors."""

    mean: Array  # of the first state, `(state,)`
    root: Array  # factor of its covariance, `(state, state)`
    matrix: Array  # F, of the transition to each time but the first, `(time - 1, state, state)`
    shift: Array  # b, `(time - 1, state)`
    noise: Array  # Q^(1/2), `(time - 1, state, state)`
    sight: Array  # H, `(time, channel, state)`
    offset: Array  # d, `(time, channel)`
    error: Array  # R^(1/2), `(time, channel, channel)`

    def dense(self) -> System:
        """Return the system with covariances, its first state reached by a step of its own."""
        square = lambda root: root @ jnp.swapaxes(root, -1, -2)
        ahead = lambda first, rest: jnp.concatenate([first[None], rest])
        eye = jnp.eye(len(self.mean), dtype=self.mean.dtype)
        steps = Dense(
            ahead(eye, self.matrix),
            ahead(jnp.zeros_like(self.mean), self.shift),
            ahead(jnp.zeros_like(eye), square(self.noise)),
        )
        seen = (self.sight, self.offset, square(self.error))
        return System(self.mean, square(self.root), steps, *seen)


class Filtered(NamedTuple):
    """The state given the data up to each time."""

    mean: Array  # `(time, state)`
    root: Array  # factor of its covariance, `(time, state, state)`
    # Log density of each time's data given those before, in nats, `(time,)`.
    log_evidence: Array
    spread: Array  # S^(1/2), `(time, channel, channel)`
    gain: Array  # K S^(1/2), `(time, state, channel)`
    white: Array  # S^(-1/2) times the data less their prediction, `(time, channel)`


class _Kernels(NamedTuple):
    """Laws of the states but the last, each given the next: `E x' + shift + D noise`."""

    gain: Array
    shift: Array
    noise: Array


def tria(matrix: Array) -> Array:
    """Return the lower triangle with the same square, `tria(A) tria(A)' = A A'`."""
    return jnp.linalg.qr(matrix.T, mode="r").T


def filter_states(system: Factored, y: Array, seen: Array) -> Filtered:
    """Return the state given the data so far, one time after the other.

    Args:
        system: The system.
        y: `(time, channel)`; what is not seen may be any finite number.
        seen: `(time, channel)`, whether it was observed.

    References:
        Kalman (1960), doi:10.1115/1.3662552.
    """
    sight, error, residual = _masked(system, y, seen)
    channels = y.shape[1]

    def update(mean, parts, sight, error, residual, seen):
        """Take in one time's data; `parts` beside each other are a factor of the law before."""
        above = jnp.concatenate([error, *(sight @ part for part in parts)], axis=1)
        below = jnp.concatenate([jnp.zeros_like(sight.T), *parts], axis=1)
        whole = tria(jnp.concatenate([above, below]))
        spread, gain = whole[:channels, :channels], whole[channels:, :channels]
        white = solve_triangular(spread, residual - sight @ mean, lower=True)
        logs = jnp.log(jnp.abs(jnp.diagonal(spread))) + LOG_2PI / 2
        logs = jnp.sum(jnp.where(seen, logs, jnp.zeros_like(logs)))
        term = -logs - 0.5 * white @ white
        return Filtered(
            mean + gain @ white, whole[channels:, channels:], term, spread, gain, white
        )

    def step(carry, inputs):
        mean, root = carry
        (matrix, shift, noise), data = inputs
        found = update(matrix @ mean + shift, (matrix @ root, noise), *data)
        return found[:2], found

    data = (sight, error, residual, seen)
    first = update(system.mean, (system.root,), *jax.tree.map(lambda v: v[0], data))
    steps = (system.matrix, system.shift, system.noise)
    rest = jax.tree.map(lambda v: v[1:], data)
    _, found = jax.lax.scan(step, first[:2], (steps, rest))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, found)


def _masked(system: Factored, y: Array, seen: Array) -> tuple[Array, Array, Array]:
    """Return sight, factor of the noise and data where unseen channels look at nothing."""
    zero = jnp.zeros((), y.dtype)
    sight = jnp.where(seen[:, :, None], system.sight, zero)
    covariance = system.error @ jnp.swapaxes(system.error, 1, 2)
    eye = jnp.eye(y.shape[1], dtype=y.dtype)[None]
    part = jnp.where(seen[:, :, None] & seen[:, None, :], covariance, eye)
    whole = jnp.all(seen, axis=1)[:, None, None]
    safe = jnp.where(whole, eye, part)  # where all is seen the factor is there already
    error = jnp.where(whole, system.error, jnp.linalg.cholesky(safe))
    return sight, error, jnp.where(seen, y - system.offset, zero)


def _kernels(system: Factored, filtered: Filtered) -> _Kernels:
    def one(mean, root, matrix, shift, noise):
        size = len(mean)
        above = jnp.concatenate([matrix @ root, noise], axis=1)
        below = jnp.concatenate([root, jnp.zeros_like(noise)], axis=1)
        whole = tria(jnp.concatenate([above, below]))
        gain = solve_triangular(whole[:size, :size], whole[size:, :size].T, lower=True, trans=1)
        return _Kernels(gain.T, mean - gain.T @ (matrix @ mean + shift), whole[size:, size:])

    steps = (system.matrix, system.shift, system.noise)
    return jax.vmap(one)(filtered.mean[:-1], filtered.root[:-1], *steps)


def smooth_states(system: Factored, filtered: Filtered) -> tuple[Array, Array]:
    """Return the mean of each state given all data, `(time, state)`, and its factor.

    References:
        Rauch, Tung and Striebel (1965), doi:10.2514/3.3166.
    """

    def back(carry, kernel):
        mean, root = carry
        mean = kernel.gain @ mean + kernel.shift
        root = tria(jnp.concatenate([kernel.gain @ root, kernel.noise], axis=1))
        return (mean, root), (mean, root)

    last = filtered.mean[-1], filtered.root[-1]
    _, before = jax.lax.scan(back, last, _kernels(system, filtered), reverse=True)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), before, last)


def sample_path(system: Factored, filtered: Filtered, *, key: PRNGKey) -> Array:
    """Return one path of states given all data, `(time, state)`.

    References:
        Frühwirth-Schnatter (1994), doi:10.1111/j.1467-9892.1994.tb00184.x.
    """
    noise = jr.normal(key, filtered.mean.shape, filtered.mean.dtype)

    def back(state, inputs):
        kernel, noise = inputs
        state = kernel.gain @ state + kernel.shift + kernel.noise @ noise
        return state, state

    last = filtered.mean[-1] + filtered.root[-1] @ noise[-1]
    _, before = jax.lax.scan(back, last, (_kernels(system, filtered), noise[:-1]), reverse=True)
    return jnp.concatenate([before, last[None]])


def density_given_rest(system: Factored, filtered: Filtered, y: Array, seen: Array) -> Array:
    """Return the log density of each number given all others, `(time, channel)`; 0 if not seen.

    Backwards in time, r and N = U U' are gradient and curvature of the log density of the data
    to come by the filtered state. Nothing is subtracted, however well a datum is known.

    References:
        de Jong (1989), doi:10.1080/01621459.1989.10478878, on deleted residuals.
    """
    sight, _, _ = _masked(system, y, seen)
    moves = jnp.concatenate([system.matrix, jnp.zeros_like(system.root)[None]])

    def back(carry, inputs):
        matrix, sight, filtered = inputs
        r, curve = matrix.T @ carry[0], matrix.T @ carry[1]
        invert = lambda v: solve_triangular(filtered.spread, v, lower=True, trans=1)
        error = invert(filtered.white - filtered.gain.T @ r)
        eye = jnp.eye(len(error), dtype=error.dtype)
        root = jnp.concatenate([invert(eye), invert(filtered.gain.T @ curve)], axis=1)
        precision = jnp.sum(root**2, axis=1)
        rest = curve - sight.T @ root[:, len(error) :]
        curve = tria(jnp.concatenate([sight.T @ root[:, : len(error)], rest], axis=1))
        return (r + sight.T @ error, curve), (error, precision)

    none = jnp.zeros_like(system.mean), jnp.zeros_like(system.root)
    _, (error, precision) = jax.lax.scan(back, none, (moves, sight, filtered), reverse=True)
    terms = 0.5 * (jnp.log(precision) - LOG_2PI - error**2 / precision)
    return jnp.where(seen, terms, jnp.zeros_like(terms))


def log_evidence(system: Factored, y: Array, seen: Array) -> Scalar:
    """Return the log density of all that is seen, in nats."""
    return long_sum(filter_states(system, y, seen).log_evidence)
