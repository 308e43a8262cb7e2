"""One step of a chain: find a start, descend, find a step size, follow one trajectory.

All need the gradient, and the gradient is most of what the compiler has to work on. So
they are rounds of one loop around one trajectory: a round that searches evaluates a
candidate start by a leapfrog step of size zero, a round that descends or scales makes a
single step, a round that samples follows a whole trajectory. The program holds one copy of
the gradient.

A start may lie 1e60 nats below the typical set, and there Hamiltonian dynamics fails: with
energies that large, float32 cannot tell whether a step conserves them. From such starts
rounds go uphill along the gradient, by steps of a length that doubles or halves, until a
step gains no more than `far(dim)` nats. That is the far side of what warm-up can
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

from ...core._types import PRNGKey, Scalar
from ._integrator import LogDensityAndGradient, PhasePoint, leapfrog
from ._metric import AbstractMetric, Vector, sample_momentum
from ._trajectory import AbstractTrajectory, Proposal

SEARCHING, SCALING, SAMPLING, FAILED, DESCENDING = 0, 1, 2, 3, 4
MAX_TRIES = 100  # starts and step sizes to try before giving up
MAX_DESCENTS = 10  # of as many steps; then the chain has to go on from where it is
_FIRST_RADIUS = 0.1  # length of the first step of a descent
_SCALING_RATE = 0.8  # Hoffman and Gelman (2014) have 0.5; Stan has 0.8

Plant = Callable[..., AbstractTrajectory]


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
    tries: Int[Array, ""]  # rounds of the present search or scaling
    direction: Scalar  # of the search for a step size: 1, -1, or 0 before it starts
    radius: Scalar  # of the next step of a descent
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
    """Return what follows the search for a start.

    Args:
        scale: Whether to search for a step size.
        descend: Whether to go uphill first.
    """
    then = SCALING if scale else SAMPLING
    return After(DESCENDING if descend else then, then)


def transition(
    log_density_and_grad: LogDensityAndGradient,
    draw_start: Callable[[PRNGKey], Vector],
    plant: Plant,
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
        plant: `plant(point, step_size, is_single, key=key)` starts a trajectory, one of a
            single step if `is_single`.
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

    def body(now: _Round) -> _Round:
        next_key, start_key, momentum_key, plant_key = jax.random.split(now.key, 4)
        is_search, is_descent = (now.chain.phase == p for p in (SEARCHING, DESCENDING))
        chain = _unevaluated(now.chain, is_search, draw_start, start_key)
        # A descent starts while the metric is the identity: its momentum is its step.
        momentum = sample_momentum(momentum_key, chain.position)
        point = PhasePoint(
            chain.position,
            jnp.where(is_descent, now.radius * _unit(chain.gradient), momentum),
            chain.log_density,
            chain.gradient,
            jnp.where(is_search | is_descent, 0, metric.adjoint(chain.gradient)),
        )
        step_size = jnp.where(is_search, 0, jnp.where(is_descent, 1, chain.step_size))
        is_single = chain.phase != SAMPLING
        trajectory = plant(point, step_size, is_single, key=plant_key)
        trajectory = lax.while_loop(lambda t: t.is_growing(), follow, trajectory)
        return _after(now, chain, trajectory, after, next_key)

    dtype = chain.position.dtype
    stats = _blank_stats(plant, chain, key)
    none = jnp.zeros((), jnp.int32)
    zero = jnp.zeros((), dtype)
    radius = jnp.asarray(_FIRST_RADIUS, dtype)
    start = _Round(chain, chain.phase == FAILED, key, none, zero, radius, none, stats)
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


def _uphill(chain: Chain, found: Proposal, radius: Scalar) -> tuple[Array, Array]:
    """Return whether a step of a descent went uphill, and whether it arrived near the top.

    Where rounding hides the gain, the slope tells both: the way is uphill while the slope
    does not change its sign, and from two slopes a parabola tells how far the top is.
    """
    limit = far(chain.position.shape[0])
    gain = found.log_density - chain.log_density
    rounding = 4 * jnp.finfo(gain.dtype).eps * jnp.abs(chain.log_density)
    direction = _unit(chain.gradient)
    before, after = jnp.sum(chain.gradient * direction), jnp.sum(found.gradient * direction)
    rest = 0.5 * after**2 * radius / (before - after)
    is_short = (rest >= 0) & (rest < limit) | (rounding < 0.1)
    is_hidden = (jnp.abs(gain) <= rounding) & (after > 0)
    return (gain > 0) | is_hidden, (gain < limit) & is_short


def _after(
    now: _Round, chain: Chain, trajectory: AbstractTrajectory, after: After, key: PRNGKey
) -> _Round:
    """Draw the conclusions of a round."""
    is_search = chain.phase == SEARCHING
    is_descent = chain.phase == DESCENDING
    is_scaling = chain.phase == SCALING
    is_sampling = chain.phase == SAMPLING
    is_late = now.tries + 1 >= MAX_TRIES

    found = trajectory.candidate
    is_found = jnp.isfinite(found.log_density) & jnp.all(jnp.isfinite(found.gradient))
    new = trajectory.proposal
    is_higher, is_near = _uphill(chain, found, now.radius)
    is_higher = is_found & is_higher
    is_down = is_higher & is_near
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
        radius=jnp.where(
            is_descent, now.radius * jnp.where(is_higher, 2.0, 0.5), _FIRST_RADIUS
        ).astype(now.radius.dtype),
        descents=descents,
        stats=trajectory.stats() | {"step_size": chain.step_size, "lp": new.log_density},
    )


def _blank_stats(plant: Plant, chain: Chain, key: PRNGKey) -> dict[str, Array]:
    """Return statistics of the right shapes for a transition that is not made."""
    x = chain.position
    point = PhasePoint(x, x, chain.log_density, x, x)
    is_single = jnp.asarray(False)
    shapes = jax.eval_shape(
        lambda k: plant(point, chain.step_size, is_single, key=k).stats(), key
    )
    like = chain.log_density
    scalars = {"step_size": like, "lp": like}
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes | scalars)
