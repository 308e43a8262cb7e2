"""One step of a chain: find a start, find a step size, follow one trajectory.

All three need the gradient, and the gradient is most of what the compiler has to work on.
So they are rounds of one loop around one trajectory: a round that searches evaluates a
candidate start by a leapfrog step of size zero, a round that scales makes a single step,
a round that samples follows a whole trajectory. The program holds one copy of the gradient.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from ...core._types import PRNGKey, Scalar
from ._integrator import LogDensityAndGradient, PhasePoint, leapfrog
from ._metric import AbstractMetric, Vector, sample_momentum
from ._trajectory import AbstractTrajectory

SEARCHING, SCALING, SAMPLING, FAILED = 0, 1, 2, 3
MAX_TRIES = 100  # starts and step sizes to try before giving up
_SCALING_RATE = 0.8  # Hoffman and Gelman (2014) have 0.5; Stan has 0.8

Plant = Callable[..., AbstractTrajectory]


class Chain(eqx.Module):
    """Where a chain is.

    Attributes:
        position: Flat and unconstrained.
        log_density: At `position`, in nats.
        gradient: Of the log density at `position`.
        step_size: Positive; what the next trajectory uses.
        phase: `SEARCHING`, `SCALING`, `SAMPLING` or `FAILED`.
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
    stats: dict[str, Array]


def transition(
    log_density_and_grad: LogDensityAndGradient,
    draw_start: Callable[[PRNGKey], Vector],
    plant: Plant,
    metric: AbstractMetric,
    chain: Chain,
    after_search: Array | int,
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
        after_search: The phase that follows a successful search.
        key: For this transition alone.

    Returns:
        The chain after the transition, and statistics.
    """

    def follow(trajectory: AbstractTrajectory) -> AbstractTrajectory:
        point = leapfrog(log_density_and_grad, metric, trajectory.end(), trajectory.step)
        return trajectory.extend(point)

    def body(now: _Round) -> _Round:
        next_key, start_key, momentum_key, plant_key = jax.random.split(now.key, 4)
        is_search = now.chain.phase == SEARCHING
        chain = _unevaluated(now.chain, is_search, draw_start, start_key)
        point = PhasePoint(
            chain.position,
            sample_momentum(momentum_key, chain.position),
            chain.log_density,
            chain.gradient,
            jnp.where(is_search, 0, metric.adjoint(chain.gradient)),
        )
        step_size = jnp.where(is_search, 0, chain.step_size)
        is_single = chain.phase != SAMPLING
        trajectory = plant(point, step_size, is_single, key=plant_key)
        trajectory = lax.while_loop(lambda t: t.is_growing(), follow, trajectory)
        return _after(now, chain, trajectory, after_search, next_key)

    dtype = chain.position.dtype
    stats = _blank_stats(plant, chain, key)
    none = jnp.zeros((), jnp.int32)
    start = _Round(chain, chain.phase == FAILED, key, none, jnp.zeros((), dtype), stats)
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


def _after(
    now: _Round, chain: Chain, trajectory: AbstractTrajectory, after_search, key: PRNGKey
) -> _Round:
    """Draw the conclusions of a round."""
    is_search = chain.phase == SEARCHING
    is_scaling = chain.phase == SCALING
    is_sampling = chain.phase == SAMPLING
    is_late = now.tries + 1 >= MAX_TRIES

    found = trajectory.candidate
    is_found = jnp.isfinite(found.log_density) & jnp.all(jnp.isfinite(found.gradient))
    new = trajectory.proposal
    select = lambda search, scale, sample: jnp.where(
        is_search, search, jnp.where(is_scaling, scale, sample)
    )
    # Double while a step is accepted well enough or halve while it is not; the answer is
    # the last step size that was.
    sign = jnp.where(trajectory.acceptance_rate() > _SCALING_RATE, 1.0, -1.0)
    sign = sign.astype(now.direction.dtype)
    is_scaled = (sign != now.direction) & (now.direction != 0) | is_late
    factor = jnp.where(is_scaled, jnp.where(sign < 0, 0.5, 1.0), jnp.where(sign > 0, 2.0, 0.5))

    phase = select(
        jnp.where(is_found, after_search, jnp.where(is_late, FAILED, SEARCHING)),
        jnp.where(is_scaled, SAMPLING, SCALING),
        SAMPLING,
    ).astype(jnp.int32)
    chain = Chain(
        position=select(found.position, chain.position, new.position),
        log_density=select(found.log_density, chain.log_density, new.log_density),
        gradient=select(found.gradient, chain.gradient, new.gradient),
        step_size=jnp.where(is_scaling, chain.step_size * factor, chain.step_size),
        phase=phase,
    )
    return _Round(
        chain=chain,
        is_over=is_sampling | (phase == FAILED),
        key=key,
        tries=jnp.where(phase == now.chain.phase, now.tries + 1, 0),
        direction=jnp.where(is_scaling, sign, 0),
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
