"""One step of a chain: find a start, descend, find a step size, follow one trajectory.

All need the gradient, and the gradient is most of what the compiler has to work on. So
they are rounds of one loop around one trajectory: a round that searches evaluates a
candidate start by a leapfrog step of size zero, a round that descends or scales makes a
single step, a round that samples follows a whole trajectory. The program holds one copy of
the gradient.

A start may lie 1e60 nats below the typical set, and there Hamiltonian dynamics fails: with
energies that large, float32 cannot tell whether a step conserves them. From such starts
rounds go uphill along the gradient, within a radius that doubles or halves, until a step
gains no more than `far(dim)` nats. That is the far side of what warm-up can
travel by itself, and a long way from the mode: chains stay as dispersed as they were. A
descent that gets nowhere (into a valley that floating point cannot follow) starts anew.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from ...core._start import MAX_STARTS
from ...core._types import PRNGKey, Scalar
from ..point._lbfgs import Memory
from ._integrator import LogDensityAndGradient, PhasePoint, leapfrog
from ._metric import AbstractMetric, Vector, sample_momentum
from ._trajectory import AbstractTrajectory, Proposal

SEARCHING, SCALING, SAMPLING, FAILED, DESCENDING = 0, 1, 2, 3, 4
MAX_DESCENTS = 10  # of 400 steps; then the chain has to go on from where it is
_DESCENT_TRIES = 400
_FIRST_RADIUS = 0.1  # length of the first step of a descent
_MEMORY = 5  # steps of a descent to learn curvature from
_RESOLVED, _NEAR_STEPS = 1.0, 5  # nats; steps of little gain where rounding is more
_SCALING_RATE = 0.8  # Hoffman and Gelman (2014) have 0.5; Stan has 0.8

StartTrajectory = Callable[..., AbstractTrajectory]


class Chain(eqx.Module):
    """Where a chain is.

    Attributes:
        position: Flat and unconstrained.
        log_density: At `position`, in nats.
        gradient: Of the log density at `position`.
        step_size: Positive; what the next trajectory uses.
        phase: `SEARCHING`, `DESCENDING`, `SCALING`, `SAMPLING` or `FAILED`.
    """

    position: Vector
    log_density: Scalar
    gradient: Vector
    step_size: Scalar
    phase: Int[Array, ""]


class _Round(eqx.Module):
    chain: Chain
    is_over: Bool[Array, ""]
    key: PRNGKey
    tries: Int[Array, ""]  # rounds of the present search, descent or scaling
    direction: Scalar  # of the search for a step size: 1, -1, or 0 before it starts
    radius: Scalar  # of the next step of a descent
    memory: Memory | None  # of a descent
    near: Int[Array, ""]  # steps of a descent, one after the other, of little gain
    descents: Int[Array, ""]  # that did not arrive
    stats: dict[str, Array]


def far(dim: int) -> float:
    """Return by how many nats a point may lie below the typical set and yet be near it."""
    return 10.0 * (dim + 10)


class After(NamedTuple):
    """The phases that follow a successful search and a descent."""

    search: int
    descent: int


def start_with(scale: bool, *, descend: bool) -> After:
    """Return what follows the search for a start."""
    then = SCALING if scale else SAMPLING
    return After(DESCENDING if descend else then, then)


def transition(
    log_density_and_grad: LogDensityAndGradient,
    draw_start: Callable[[PRNGKey], Vector],
    start_trajectory: StartTrajectory,
    metric: AbstractMetric,
    chain: Chain,
    after: After,
    *,
    key: PRNGKey,
) -> tuple[Chain, dict[str, Array]]:
    """Make one transition, preceded by whatever the chain's phase asks for.

    Args:
        log_density_and_grad: Log density in nats and gradient at a flat position.
        draw_start: A random candidate for the start.
        start_trajectory: Called as `start_trajectory(point, step_size, is_single, key=key)`;
            the trajectory is of a single step if `is_single`.
        metric: Maps whitened momenta to velocities.
        chain: Where to start.
        after: The phases that follow a search and a descent.
        key: For this transition alone.

    Returns:
        The chain after the transition, and statistics.
    """

    def follow(trajectory: AbstractTrajectory) -> AbstractTrajectory:
        point = leapfrog(log_density_and_grad, metric, trajectory.end(), trajectory.step)
        return trajectory.extend(point)

    def grow(trajectory: AbstractTrajectory) -> AbstractTrajectory:
        return lax.while_loop(lambda t: t.is_extending(), follow, trajectory).close()

    def body(now: _Round) -> _Round:
        next_key, start_key, momentum_key, trajectory_key = jax.random.split(now.key, 4)
        is_search, is_descent = (now.chain.phase == p for p in (SEARCHING, DESCENDING))
        chain = _unevaluated(now.chain, is_search, draw_start, start_key)
        # A descent starts while the metric is the identity: its momentum is its step.
        momentum = sample_momentum(momentum_key, chain.position)
        point = PhasePoint(
            chain.position,
            lax.cond(is_descent, lambda: _uphill(now), lambda: momentum),
            chain.log_density,
            chain.gradient,
            jnp.where(is_search | is_descent, 0, metric.adjoint(chain.gradient)),
        )
        step_size = jnp.where(is_search, 0, jnp.where(is_descent, 1, chain.step_size))
        is_single = chain.phase != SAMPLING
        trajectory = start_trajectory(point, step_size, is_single, key=trajectory_key)
        trajectory = lax.while_loop(lambda t: t.is_growing(), grow, trajectory)
        return _after(now, chain, trajectory, after, next_key)

    dtype = chain.position.dtype
    stats = _blank_stats(start_trajectory, chain, key)
    none = jnp.zeros((), jnp.int32)
    zero = jnp.zeros((), dtype)
    radius = jnp.asarray(_FIRST_RADIUS, dtype)
    # In float64 energies are resolved but for those of 1e15 nats, and compiling costs time.
    is_double = jnp.finfo(dtype).bits == 64
    memory = None if is_double else Memory.empty(_MEMORY, chain.position)
    is_over = chain.phase == FAILED
    start = _Round(chain, is_over, key, none, zero, radius, memory, none, none, stats)
    end = lax.while_loop(lambda now: ~now.is_over, body, start)
    return end.chain, end.stats


def _unevaluated(chain: Chain, is_search, draw_start, key: PRNGKey) -> Chain:
    """Replace the position by a candidate and all that is known of it by NaN, if searching.

    A first leaf with a finite energy replaces the gradient of NaN; any other leaves it.
    """
    position = lax.cond(is_search, draw_start, lambda _: chain.position, key)
    return Chain(
        position,
        jnp.where(is_search, 0, chain.log_density),
        jnp.where(is_search, jnp.nan, chain.gradient),
        chain.step_size,
        chain.phase,
    )


def _unit(gradient: Vector) -> Vector:
    """Return a vector of length one in the direction of `gradient`, however large that is."""
    largest = jnp.max(jnp.abs(gradient))
    scaled = gradient / jnp.where(largest > 0, largest, 1)
    return scaled / jnp.sqrt(jnp.maximum(jnp.sum(scaled * scaled), 1))


def _is_resolved(chain: Chain | Proposal) -> Bool[Array, ""]:
    """Whether log densities are small enough for differences of a nat."""
    return _rounding(chain) < _RESOLVED


def _rounding(chain: Chain | Proposal) -> Scalar:
    return 4 * jnp.finfo(chain.log_density.dtype).eps * jnp.abs(chain.log_density)


def _uphill(now: _Round) -> Vector:
    """Return a step of a descent, no longer than the radius.

    Where energies are resolved it goes along the gradient, as long as that: it crosses
    orders of magnitude by doubling. Where they are not, it is a quasi-Newton step.
    """
    gradient = now.chain.gradient
    if now.memory is None:
        return now.radius * _unit(gradient)
    newton = now.memory.direction(-gradient)
    length = jnp.sqrt(jnp.sum(newton * newton))
    is_known = (now.memory.inverses[-1] > 0) & (jnp.sum(newton * gradient) > 0)
    is_known = is_known & (length > 0) & jnp.isfinite(length) & ~_is_resolved(now.chain)
    shorter = newton * jnp.minimum(1, now.radius / jnp.where(is_known, length, 1))
    return jnp.where(is_known, shorter, now.radius * _unit(gradient))


class _Step(NamedTuple):
    """What came of a step of a descent."""

    is_higher: Bool[Array, ""]
    radius: Scalar
    memory: Memory | None
    near: Int[Array, ""]
    is_down: Bool[Array, ""]


def _judge(now: _Round, found: Proposal) -> _Step:
    """Judge a step of a descent.

    Where rounding hides the gain, the slope tells whether the way still leads uphill. There
    the dynamics would get nowhere, so a step of little gain is not enough to stop: across a
    narrow valley every step is one. It takes several that the radius did not shorten.
    """
    old = now.chain
    gain = found.log_density - old.log_density
    step, change = found.position - old.position, old.gradient - found.gradient
    is_hidden = (jnp.abs(gain) <= _rounding(found)) & (jnp.sum(found.gradient * step) > 0)
    is_higher = (gain > 0) | is_hidden
    memory = now.memory
    if memory is not None:
        new = memory.with_step(step, change)
        memory = jax.tree.map(lambda a, b: jnp.where(is_higher, a, b), new, memory)
    is_resolved = _is_resolved(found)
    is_whole = is_resolved | (jnp.sum(step * step) < 0.9 * now.radius**2)
    near = jnp.where(gain < far(step.shape[0]), now.near + is_whole.astype(jnp.int32), 0)
    wanted = jnp.where(is_resolved, 1, _NEAR_STEPS)
    return _Step(
        is_higher,
        now.radius * jnp.where(is_higher, 2.0, 0.5).astype(gain.dtype),
        memory,
        jnp.where(is_higher, near, now.near).astype(jnp.int32),
        is_higher & (near >= wanted),
    )


def _after(
    now: _Round, chain: Chain, trajectory: AbstractTrajectory, after: After, key: PRNGKey
) -> _Round:
    """Draw the conclusions of a round."""
    is_search = chain.phase == SEARCHING
    is_descent = chain.phase == DESCENDING
    is_scaling = chain.phase == SCALING
    is_sampling = chain.phase == SAMPLING
    is_late = now.tries + 1 >= jnp.where(is_descent, _DESCENT_TRIES, MAX_STARTS)

    found = trajectory.candidate
    is_found = jnp.isfinite(found.log_density) & jnp.all(jnp.isfinite(found.gradient))
    new = trajectory.proposal
    no = jnp.asarray(False)
    lower = _Step(no, 0.5 * now.radius, now.memory, now.near, no)
    step = lax.cond(is_descent & is_found, lambda: _judge(now, found), lambda: lower)
    is_higher, is_down = step.is_higher & is_found, step.is_down & is_found
    is_lost = is_descent & is_late & ~is_down
    descents = now.descents + is_lost.astype(jnp.int32)
    # Another start may be better; the last one has to do.
    otherwise = jnp.where(descents < MAX_DESCENTS, SEARCHING, after.descent)
    # Double while a step is accepted well enough or halve while it is not; the answer is
    # the last step size that was.
    sign = jnp.where(trajectory.acceptance_rate() > _SCALING_RATE, 1.0, -1.0)
    sign = sign.astype(now.direction.dtype)
    is_scaled = (sign != now.direction) & (now.direction != 0) | is_late
    factor = jnp.where(is_scaled, jnp.where(sign < 0, 0.5, 1.0), jnp.where(sign > 0, 2.0, 0.5))

    select = lambda search, descent, scale, sample: jnp.where(
        is_search, search, jnp.where(is_descent, descent, jnp.where(is_scaling, scale, sample))
    )
    moved = lambda found, old, new: select(found, jnp.where(is_higher, found, old), old, new)
    phase = select(
        jnp.where(is_found, after.search, jnp.where(is_late, FAILED, SEARCHING)),
        jnp.where(is_down, after.descent, jnp.where(is_lost, otherwise, DESCENDING)),
        jnp.where(is_scaled, SAMPLING, SCALING),
        SAMPLING,
    ).astype(jnp.int32)
    chain = Chain(
        position=moved(found.position, chain.position, new.position),
        log_density=moved(found.log_density, chain.log_density, new.log_density),
        gradient=moved(found.gradient, chain.gradient, new.gradient),
        step_size=jnp.where(is_scaling, chain.step_size * factor, chain.step_size),
        phase=phase,
    )
    return _Round(
        chain=chain,
        is_over=is_sampling | (phase == FAILED),
        key=key,
        tries=jnp.where(phase == now.chain.phase, now.tries + 1, 0),
        direction=jnp.where(is_scaling, sign, 0),
        radius=jnp.where(is_descent, step.radius, _FIRST_RADIUS),
        memory=step.memory,
        near=jnp.where(is_descent, step.near, 0),
        descents=descents,
        stats=trajectory.stats() | {"step_size": chain.step_size, "lp": new.log_density},
    )


def _blank_stats(
    start_trajectory: StartTrajectory, chain: Chain, key: PRNGKey
) -> dict[str, Array]:
    """Return statistics of the right shapes for a transition that is not made."""
    x = chain.position
    point = PhasePoint(x, x, chain.log_density, x, x)
    is_single = jnp.asarray(False)
    shapes = jax.eval_shape(
        lambda k: start_trajectory(point, chain.step_size, is_single, key=k).stats(), key
    )
    like = chain.log_density
    scalars = {"step_size": like, "lp": like}
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes | scalars)
