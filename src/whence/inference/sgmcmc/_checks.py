"""What is looked at after a run, for `diagnose`, within a share of the run's work."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree

from ...core._cache import remembering
from ...core._engine import Info
from ...core._flat import flat_view
from ...core._stream import stream_of
from ...core._target import AbstractTarget
from ...core._types import PRNGKey
from ...diagnostics._mcse import mcse
from .._inflation import NUMBERS, Looked, look_at
from ._decay import ConstantStep
from ._gradient import Space, batches_per_epoch, rows_of
from ._record import StochasticGradientChains
from ._stein import stein_discrepancy
from ._tuning import FIRST, Tuning, inflation_by_noise, largest_stable, look

LEAST_DRAWS = (
    40  # of the run with half the step, per chain, of which the first half is left out
)
LEAST_UPDATES = 1_000  # of a chain, or its checks are not worth compiling a program for
TESTED = 5  # draws per chain for Metropolis tests


def checked(
    engine: Any,
    target: AbstractTarget,
    state: Any,
    made: Info,
    weights: np.ndarray,
    *,
    key: PRNGKey,
) -> StochasticGradientChains:
    """Return the record of a run.

    Args:
        engine: An `AbstractSGMCMC`.
        target: The target density.
        state: Final states of the chains.
        made: Draws and statistics, `(chain, draw, ...)`.
        weights: Of the draws, with a sum of 1.
        key: A typed key.
    """
    parts, (chains, draws) = engine.parts, weights.shape
    updates, work = engine.updates_per_draw * draws, parts.gradient.work(target)
    rows = None if work is None else int(work * updates * chains)
    looked = look_at(target, made.position, weights, rows, key=key)
    if parts.sites:
        looked = looked._replace(gradients=_of_all_sites(target, looked))
    inflation, error = (x / engine.temperature for x in looked.inflation())
    found: dict[str, Any] = {"step_size": made.stats["step_size"].max(axis=1)}
    if not parts.overdamped:
        kinetic = np.asarray(made.stats["kinetic"], np.float64) / engine.temperature
        if "o" in parts.word and "D" not in parts.word:
            # Where positions are right, this friction makes momenta as much too warm.
            kinetic = kinetic * (1 - made.stats["friction"] * made.stats["step_size"] / 2)
        found |= {"kinetic": kinetic.mean(), "kinetic_error": float(mcse(kinetic).mean)}
        found["friction"] = made.stats["friction"].mean(axis=1)
    if parts.subtract_noise:
        found["clamped"] = made.stats["clamped"].mean()
    if engine.checks and updates >= LEAST_UPDATES and not parts.sites:
        forces, roots = _forces(engine, target, state, found, jr.fold_in(key, 1))
        found |= forces
        needed = 2 * TESTED * chains * rows_of(target)
        if stream_of(target) is None and (rows is None or needed <= engine.checks * rows):
            tested = jr.fold_in(key, 2)
            steps = found["step_size"]
            found["acceptance"] = _acceptance(
                engine, target, looked.draws, roots, steps, tested
            )
        if isinstance(parts.decay, ConstantStep) and engine.checks * draws >= LEAST_DRAWS:
            number, start = int(engine.checks * draws), engine.schedule.warmup + draws
            second = jr.fold_in(key, 3)
            found |= _halved(engine, target, state, made, weights, number, start, second)
        if parts.gradient.is_local and looked.draws.shape[1] >= 4:
            found |= _stein(looked, engine.temperature)
    return StochasticGradientChains(inflation, error, parts.overdamped, **found)


def describe_stability(engine: Any, target: AbstractTarget, state: Any) -> str:
    """Return a sentence on which step sizes are stable where chains are."""
    curvature = np.asarray(_look(engine, target, state, jr.key(0))[0])
    good = curvature[np.isfinite(curvature) & (curvature > 0)]
    if not good.size:
        return ""
    limit = largest_stable(float(good.max()), overdamped=engine.parts.overdamped)
    used = engine.step_size
    yours = "one was to be found in warm-up" if used is None else f"it was {used:.3g}"
    return (
        f"Where the chains were last, the largest curvature is {good.max():.3g}: updates are "
        f"stable for a `step_size` below {limit:.3g}; {yours}."
    )


def _of_all_sites(target: AbstractTarget, looked: Looked) -> np.ndarray:
    """Return gradients of the log density of the rows of all processes, which add theirs up."""
    flat = looked.draws.reshape(-1, looked.draws.shape[2])
    points = jnp.asarray(flat, flat_view(target)[0].dtype)
    prior = np.asarray(_prior_gradients(target, points)).reshape(looked.draws.shape)
    return prior + multihost_utils.process_allgather(looked.gradients - prior).sum(0)


@remembering
def _prior_gradients(target, points):
    form = flat_view(target)[1]
    return jax.lax.map(jax.grad(lambda x: target.log_prior(form(x))), points)


def _forces(engine, target, state, found, key) -> tuple[dict[str, Any], np.ndarray]:
    """Largest stable step size and noise of the gradient; roots of the preconditioner."""
    parts = engine.parts
    curvature, along, noise, roots = map(np.asarray, _look(engine, target, state, key))
    limit = largest_stable(np.maximum(curvature, 1e-30), overdamped=parts.overdamped)
    variance = np.maximum(along, noise.mean(axis=1))
    epoch = batches_per_epoch(parts.gradient, target)
    pace = found["step_size"], found.get("friction", 1.0)
    ratio = inflation_by_noise(*pace, variance, curvature, parts.word, epoch)
    return {"largest_stable": limit, "noise_ratio": float(ratio.mean())}, roots


def _stein(looked: Looked, temperature: float) -> dict[str, float]:
    product = ((looked.mean - looked.draws) * looked.gradients).mean(axis=2)
    scatter = product.var() / product.size
    longer = float(mcse(product).mean) ** 2 / scatter if scatter > 0 else np.nan
    longer = max(longer, 1.0) if np.isfinite(longer) else 1.0
    value, p = stein_discrepancy(looked.draws, looked.gradients / temperature, longer)
    return {"stein": value, "stein_p": p}


@remembering
def _look(engine, target, states, key):
    """Curvature, noise along it and by coordinate, and roots of `G`, of each chain."""
    parts = engine.parts

    def one(pair):
        state, key = pair
        flat, form = ravel_pytree(state.position)
        first = jnp.zeros((), jnp.int32)
        product = parts.product(Space(target, form), state.epoch, first, key, flat)
        part, start = parts.preconditioner, Tuning.start(flat, key=key)
        found, _ = look(start, product, part, state.scale, FIRST, key=key)
        root = jnp.ones_like(flat) * part.root(state.scale)
        return found.curvature, found.along, found.noise, root

    chains = jax.tree.leaves(states)[0].shape[0]
    return jax.lax.map(one, (states, jr.split(key, chains)))


def _acceptance(engine, target, draws, roots, steps, key) -> float:
    """Return the mean probability that a Metropolis test on all data accepts an update."""
    chosen = np.linspace(0, draws.shape[1] - 1, TESTED).astype(int)
    dtype = flat_view(target)[0].dtype
    points = jnp.asarray(draws[:, chosen].reshape(-1, draws.shape[2]), dtype)
    spread = lambda x: jnp.asarray(np.repeat(x, TESTED, axis=0), dtype)
    return float(np.mean(_tested(engine, target, points, spread(roots), spread(steps), key)))


@remembering
def _tested(engine, target, points, roots, steps, key):
    """Probability that the update with the gradient of all data is accepted, at each point.

    Overdamped: the step as a proposal (MALA). Else: one leapfrog step, what words like OBABO
    would have without noise; `sqrt(G)` times the momentum is the velocity.
    """
    form = flat_view(target)[1]
    temperature = engine.temperature
    density = jax.value_and_grad(lambda x: target.log_density(form(x)) / temperature)

    def one(arguments):
        x, root, h, key = arguments
        noise = jr.normal(key, x.shape, x.dtype)
        value, gradient = density(x)
        if engine.parts.overdamped:
            h = h * temperature
            move = jnp.sqrt(2 * h) * noise
            y = x + root * (h * root * gradient + move)
            ended, other = density(y)
            # Back from y the noise must have been this much.
            back = (x - y) / root - h * root * other
            change = (noise @ noise - back @ back / (2 * h)) / 2
        else:
            h = h * jnp.sqrt(jnp.asarray(temperature, x.dtype))
            half = noise + h / 2 * root * gradient
            y = x + h * root * half
            ended, other = density(y)
            p = half + h / 2 * root * other
            change = (noise @ noise - p @ p) / 2
        ratio = ended - value + change
        return jnp.where(jnp.isfinite(ratio), jnp.exp(jnp.minimum(ratio, 0)), 0)

    return jax.lax.map(one, (points, roots, steps, jr.split(key, len(points))))


def _halved(engine, target, state, made: Info, weights, number, start, key) -> dict[str, float]:
    """Return the ratio of variances with half the step to those of the draws, and its error.

    Chains go on from where they ended. Squared deviations are averaged over coordinates, in
    units of their variances, to one series.
    """
    leaves = [x.reshape(*weights.shape, -1) for x in jax.tree.leaves(made.position)]
    skip = -(-weights.size * sum(x.shape[2] for x in leaves) // NUMBERS)
    flat = np.concatenate([x[:, ::skip] for x in leaves], axis=2).astype(np.float64)
    share = weights[:, ::skip] / weights[:, ::skip].sum()
    mean = np.tensordot(share, flat, 2)
    squares = (flat - mean) ** 2
    variance = np.tensordot(share, squares, 2)
    variance = np.where(variance > 0, variance, np.inf)
    before = (squares / variance).mean(axis=2)
    dtype = flat_view(target)[0].dtype
    about = jnp.asarray(mean, dtype), jnp.asarray(variance, dtype)
    index = jnp.asarray(start, jnp.int32)
    after = np.asarray(_second_run(engine, target, state, about, index, number, key))
    after = after[:, number // 2 :].astype(np.float64)
    # A short run that forgets slowly looks better than it is: by the long one it is no better
    # than this, with twice the updates for each independent draw.
    known, longer = float(mcse(before).mean), before.size / after.size
    error = np.hypot(max(float(mcse(after).mean), known * (2 * longer) ** 0.5), known)
    return {"halving": float(after.mean() / before.mean()), "halving_error": float(error)}


@remembering
def _second_run(engine, target, states, about, start, number: int, key):
    """Mean squared deviation of each draw, of chains that go on with half the step."""
    mean, variance = about

    def chain(pair):
        state, key = pair

        def step(state, i):
            state, info = engine.advance(target, state, start + i, 0.5, key=jr.fold_in(key, i))
            flat = ravel_pytree(info.position)[0]
            return state, jnp.mean((flat - mean) ** 2 / variance)

        return jax.lax.scan(step, state, jnp.arange(number, dtype=jnp.int32))[1]

    chains = jax.tree.leaves(states)[0].shape[0]
    return jax.lax.map(chain, (states, jr.split(key, chains)))
