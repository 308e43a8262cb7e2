"""A path made of whitened noise: what a draw of an equation that is not linear is.

Between points of a grid the bank is stepped exactly, and the equation by Heun's rule. The
noise is standard normal numbers: of each step as many as there are processes, the first that
of the Brownian motion itself; and at the start those of the state and of the bank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from ...core._dtype import relaxed
from ...core._types import PRNGKey
from .._seen import log_prob_of_seen
from ._bank import Bank
from ._exact import normals
from ._linear import driver_weights, initial, value
from ._transition import semidefinite_factor

PATH = ("start_noise", "step_noise")  # latents of a path
LONG = 1000  # steps from which on a gradient keeps states only


class Plan(eqx.Module):
    """What an equation knows of its data."""

    form: str = eqx.field(static=True)  # "exact": the path is integrated out; "path": a latent
    several: bool = eqx.field(static=True)  # whether there are several series
    components: int = eqx.field(static=True)  # of the state
    nodes: int = eqx.field(static=True)  # of the bank
    longest: int = eqx.field(static=True)  # steps of the longest gap between two times
    grid: Array  # `(point,)`, on which the path is
    at: Array  # where on it the times are


class Steps(NamedTuple):
    """Steps from each point of a grid to the next; leading axes are steps."""

    time: Array  # where each begins
    gap: Array  # its length
    decay: Array  # of the processes over it, `(step, node)`
    factor: Array  # of the covariance of their noise, `(step, node, node)`
    weights: Array  # at its end, `(step, driver, node)`
    turn: Array  # how much these differ from those at its beginning: H may vary in time


def bank_steps(bank: Bank, gaps: Array) -> tuple[Array, Array]:
    """Return decay `(step, node)` of the processes over gaps, and factors of their noise.

    The step is exact: rates however large need no short steps.
    """
    g, length = bank.rates, gaps[:, None, None]
    total = (g[:, None] + g[None, :])[None]
    safe = jnp.where(total > 0, total, 1.0)
    shared = jnp.where(total > 0, -jnp.expm1(-safe * length) / safe, length)
    both = bank.scales[:, None] * bank.scales[None, :]
    decay = jnp.exp(-g[None, :] * gaps[:, None])
    return decay, semidefinite_factor(both[None] * shared)


def grid_of(times: np.ndarray, start: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid that begins at the start and holds all times, and where these are.

    Each gap is divided evenly, so that no step is longer than the whole over `steps`.
    """
    longest = (times[-1] - start) / steps
    points, at = [np.array([start])], []
    for begin, end in zip(np.concatenate([[start], times]), times):
        parts = int(np.ceil((end - begin) / longest - 1e-9)) if end > begin else 0
        points.append(np.linspace(begin, end, parts + 1)[1:])
        at.append((at[-1] if at else 0) + parts)
    return np.concatenate(points), np.asarray(at, np.int32)


def steps_on(model: Any, bank: Bank, grid: Array) -> Steps:
    """Return the steps of a model's equation along a grid."""
    gaps = jnp.diff(grid)
    decay, factor = bank_steps(bank, gaps)
    weights = weights_on(model, bank, grid)
    return Steps(grid[:-1], gaps, decay, factor, weights[1:], jnp.diff(weights, axis=0))


def weights_on(model: Any, bank: Bank, grid: Array) -> Array:
    """Return the weights of each driver at each point, `(point, driver, node)`."""
    d = len(initial(model, grid.dtype)[0])
    if not model.varies:
        weights = driver_weights(bank, d)
        return jnp.broadcast_to(weights, (len(grid), *weights.shape))
    with relaxed():
        hurst = jax.vmap(lambda t: jnp.asarray(model.hurst(t), grid.dtype))(grid)
    if hurst.shape[1:] not in ((), (d,)):
        raise ValueError(
            f"`hurst` of {type(model).__name__} must return one number, or one for each of "
            f"the {d} components of the state; got shape {hurst.shape[1:]}."
        )
    weights = model.noise.bank(bank.horizon, bank.count, hurst).weights
    weights = weights if weights.ndim == 3 else weights[:, None]
    return jnp.broadcast_to(weights, (len(grid), d, len(bank.rates)))


def start_size(model: Any, components: int, nodes: int) -> int:
    """Return how many numbers make the state and the bank at the start."""
    moving = 0 if model.noise.kind == "II" else nodes - model.noise.zero
    return components * (1 + moving)


def started(model: Any, bank: Bank, white: Array) -> tuple[Array, Array]:
    """Return the state `(component,)` and its bank `(driver, node)` at the start."""
    loc, scale = initial(model, white.dtype)
    d, k = len(loc), len(bank.rates)
    x = loc + scale * white[:d]
    moving = (len(white) - d) // d
    if not moving:
        return x, jnp.zeros((d, k), white.dtype)
    root = bank.initial_factor()[:, k - moving :]
    return x, white[d:].reshape(d, moving) @ root.T


def advance(model: Any, step: Steps, x: Array, y: Array, noise: Array) -> tuple[Array, Array]:
    """Return state and bank after one step.

    `dB = sum_k d(w_k Y_k)`, with the moving kernel where H varies in time: the change of the
    weights counts too (Tong and others 2022, arXiv:2210.16584). Heun's rule has the
    Stratonovich solution; for a constant diffusion it solves the ordinary equation of
    `X - sigma B` (Doss 1977; Sussmann 1978, doi:10.1214/aop/1176995608).
    """
    new = step.decay[None] * y + noise
    moved = jnp.sum(step.weights * (new - y) + step.turn * y, axis=-1)
    t, h = step.time, step.gap
    b, s = value(model, "drift", t, x), value(model, "diffusion", t, x)
    guess = x + h * b + s * moved
    b = (b + value(model, "drift", t + h, guess)) / 2
    return x + h * b + (s + value(model, "diffusion", t + h, guess)) / 2 * moved, new


def scan(step: Any, carry: Any, inputs: Any) -> tuple[Any, Any]:
    """Return `jax.lax.scan`; along a long path a gradient computes each step again."""
    long = len(jax.tree.leaves(inputs)[0]) > LONG
    return jax.lax.scan(jax.checkpoint(step) if long else step, carry, inputs)


def path_of(model: Any, bank: Bank, steps: Steps, first: Array, white: Array):
    """Return states `(point, component)` and banks `(point, driver, node)` on the grid."""
    begin = started(model, bank, first)

    def one(state, inputs):
        step, white = inputs
        state = advance(model, step, state[0], state[1], white @ step.factor.T)
        return state, state

    _, found = scan(one, begin, (steps, white))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begin, found)


def draw_paths(
    model: Any, bank: Bank, times: Array, start: Array, key: PRNGKey, paths: int, steps: int
) -> Array:
    """Return the state at each time of paths drawn anew, `(path, time, component)`."""
    even = start + (times[-1] - start) * jnp.linspace(0.0, 1.0, steps + 1, dtype=times.dtype)
    grid = jnp.sort(jnp.concatenate([even, times]))
    d, k = len(initial(model, times.dtype)[0]), len(bank.rates)
    # Paths are the last axis: what is done to all of them is one loop without strides.
    move = jax.vmap(lambda *v: advance(model, *v), (None, -1, -1, -1), -1)

    @jax.checkpoint
    def one(state, inputs):
        step, key = inputs
        # Single precision will do: 22 bits, far below the error of steps. Fused into the sums,
        # numbers would be made again for each of them.
        white = normals(key, (k, d, 1, paths), jnp.dtype("float32")).astype(times.dtype)
        white = jax.lax.optimization_barrier(white)
        noise = sum(step.factor[None, :, j, None] * white[j] for j in range(k))
        state = move(step, *state, noise)
        return state, state[0]

    key_start, key_steps = jr.split(key)
    white = jr.normal(key_start, (paths, start_size(model, d, k)), times.dtype)
    begin = jax.vmap(lambda w: started(model, bank, w), out_axes=-1)(white)
    keys = jr.split(key_steps, len(grid) - 1)
    _, found = jax.lax.scan(one, begin, (steps_on(model, bank, grid), keys))
    found = jnp.concatenate([begin[0][None], found])
    return jnp.moveaxis(found[jnp.searchsorted(grid, times, side="right") - 1], -1, 0)


def datum_term(model: Any, x: Array, y: Array, seen: Array | None) -> Array:
    """Return the log density of the data of one time given the state there, in nats."""
    with relaxed():
        return jnp.sum(log_prob_of_seen(model.observe(x), y, seen)).astype(x.dtype)


def emitted(model: Any, states: Array, key: PRNGKey) -> Array:
    """Return data drawn given the state at each time, `(time, ...)`."""
    with relaxed():
        one = lambda x, k: model.observe(x).sample(k)
        return jax.vmap(one)(states, jr.split(key, len(states)))


def between(
    model: Any, bank: Bank, grid: Array, path: Any, white: Array, at: Array, key: PRNGKey
) -> Array:
    """Return a draw of the state at new times, given the path on the grid.

    Inside a step the processes have the law that their known noise over the whole step
    leaves; after the grid they go on with what they remember.
    """
    order = jnp.argsort(at)
    new = at[order]
    cell = jnp.clip(jnp.searchsorted(grid, new, side="right") - 1, 0, len(grid) - 1)
    beyond = cell == len(grid) - 1
    end = jnp.where(beyond, new, grid[jnp.minimum(cell + 1, len(grid) - 1)])
    before = jnp.concatenate([grid[:1], new[:-1]])
    inside = before > grid[cell]  # another new time lies between
    begin = jnp.where(inside, before, grid[cell])
    decay, root = bank_steps(bank, jnp.stack([new - begin, end - new], axis=1).ravel())
    pair = lambda v: v.reshape(len(new), 2, *v.shape[1:])
    decay, root = pair(decay), pair(root)
    first, second = root[:, 0], root[:, 1]
    cross = first @ jnp.swapaxes(first, 1, 2) * decay[:, 1][:, None, :]
    whole = decay[:, 1][:, :, None] * cross + second @ jnp.swapaxes(second, 1, 2)
    near = 1e-10 if grid.dtype == jnp.float64 else 1e-5
    gain = cross @ jnp.linalg.pinv(whole, rtol=near, hermitian=True)
    gain = jnp.where(beyond[:, None, None], jnp.zeros_like(gain), gain)
    ends, starts = weights_on(model, bank, new), weights_on(model, bank, begin)
    steps = Steps(begin, new - begin, decay[:, 0], first, ends, ends - starts)
    factor = bank_steps(bank, jnp.diff(grid))[1]
    total = jnp.einsum("sdj,skj->sdk", white, factor)
    total = jnp.concatenate([total, jnp.zeros_like(total[:1])])

    def one(carry, inputs):
        step, cell, inside, gain, second, onward, key = inputs
        own = (*jax.tree.map(lambda v: v[cell], path), total[cell])
        x, y, left = jax.tree.map(lambda a, b: jnp.where(inside, a, b), carry, own)
        own, other = jr.normal(key, (2, *y.shape), y.dtype)
        drawn = own @ step.factor.T
        error = left - onward[None] * drawn - other @ second.T
        noise = drawn + error @ gain.T
        x, y = advance(model, step, x, y, noise)
        return (x, y, left - onward[None] * noise), x

    carry = (*jax.tree.map(lambda v: v[0], path), total[0])
    keys = jr.split(key, len(new))
    inputs = (steps, cell, inside, gain, second, decay[:, 1], keys)
    return jax.lax.scan(one, carry, inputs)[1][jnp.argsort(order)]
