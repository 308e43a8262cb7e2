"""Repeated moves at one temperature, whose scale and number are tuned here."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from ...core._types import PRNGKey, Scalar
from ._kernels import AbstractKernel, LogTerms, Particles, Proposal, guard
from ._metric import AbstractMetric, Factor
from ._weights import wide_dtype

# How far the mean acceptance rate moves the log scale, per move. The mean over particles
# is precise, so the gain need not decay; 0.5 is stable for slopes of the acceptance rate
# in the log scale down to -4, steeper than either kernel's.
GAIN = 0.5
# Moves go on until every coordinate and the log tilt (whose mixing sets the error of the
# evidence) have gone 90% of the way to independence (half the mean squared displacement
# against the variance), or the slowest gains less than 2% by a move.
_INDEPENDENT = 0.9
_STAGNANT = 1.02
# Standard errors by which particles have spread for certain. Such as have come to rest spread
# no more when they move: their law is left invariant.
_SURE = 3.0


class MoveStats(NamedTuple):
    """What the moves at one temperature did."""

    acceptance_rate: Scalar  # mean over moves and particles
    num_moves: Int[Array, ""]  # moves of each particle
    num_evaluations: Int[Array, ""]  # density (or gradient) evaluations per particle
    growth: Scalar  # of the mean variance, as a share of itself; 0 if that may be chance


def no_moves() -> MoveStats:
    """Return what no moves did."""
    none = jnp.asarray(0, jnp.int32)
    zero = jnp.zeros((), wide_dtype())
    return MoveStats(zero, none, none, zero)


class Moves(NamedTuple):
    """How particles are to be moved."""

    kernel: AbstractKernel  # the proposal
    metric: AbstractMetric  # what moves are whitened by
    number: int | None  # moves of every particle; None to go on until they have mixed
    most: int  # most moves if `number` is None


class _Walk(eqx.Module):
    """Particles on their way, and what has been done."""

    count: Int[Array, ""]  # moves done; -1 before the refresh
    particles: Particles
    gradient: Float[Array, "particle dim"] | None
    log_scale: Scalar
    rate: Scalar  # of acceptance, of the last move
    acceptance: Scalar  # summed over moves
    num_evaluations: Int[Array, ""]

    def stats(
        self, start: Float[Array, "particle dim"], weights: Float[Array, " particle"]
    ) -> MoveStats:
        mean = self.acceptance / jnp.maximum(self.count, 1).astype(self.acceptance.dtype)
        growth = _growth(self.particles.x, start, weights)
        return MoveStats(mean, self.count, self.num_evaluations, growth)


class _Progress(NamedTuple):
    """How far particles have come from where they were."""

    start_tilt: Float[Array, " particle"]
    travelled: Scalar
    settled: Bool[Array, ""]


def _set_out(kernel: AbstractKernel, particles: Particles, log_scale: Scalar) -> _Walk:
    none, zero = jnp.asarray(0, jnp.int32), jnp.zeros((), log_scale.dtype)
    gradient = jnp.zeros_like(particles.x) if kernel.uses_gradient else None
    return _Walk(none - 1, particles, gradient, log_scale, zero, zero, none)


def _move(
    kernel: AbstractKernel,
    log_terms: LogTerms,
    walk: _Walk,
    weights: Float[Array, " particle"],
    temperature: Scalar,
    factor: Factor,
    *,
    key: PRNGKey,
) -> _Walk:
    """Move all particles once, and tune the scale; the first time, evaluate where they are."""
    refresh = walk.count < 0
    key_propose, key_accept = jr.split(jr.fold_in(key, walk.count + 1))
    proposal = kernel.propose(
        log_terms,
        walk.particles,
        walk.gradient,
        temperature,
        factor,
        jnp.exp(walk.log_scale),
        refresh,
        key=key_propose,
    )
    probability = _acceptance(walk.particles, proposal, temperature)
    accept = refresh | (jr.uniform(key_accept, probability.shape) < probability)
    moved, gradient = jax.tree.map(
        lambda new, old: jnp.where(accept.reshape((-1,) + (1,) * (new.ndim - 1)), new, old),
        (proposal.particles, proposal.gradient),
        (walk.particles, walk.gradient),
    )
    rate = jnp.sum(weights * probability)
    goal = kernel.target_acceptance(moved.x.shape[1])
    return _Walk(
        count=walk.count + 1,
        particles=moved,
        gradient=gradient,
        log_scale=jnp.where(refresh, walk.log_scale, walk.log_scale + GAIN * (rate - goal)),
        rate=rate,
        acceptance=walk.acceptance + jnp.where(refresh, 0.0, rate),
        num_evaluations=walk.num_evaluations + proposal.num_evaluations,
    )


def move_particles(
    moves: Moves,
    log_terms: LogTerms,
    particles: Particles,
    log_weights: Float[Array, " particle"],
    temperature: Scalar,
    factor: Factor,
    log_scale: Scalar,
    *,
    key: PRNGKey,
) -> tuple[Particles, Scalar, MoveStats]:
    """Move all particles, many times, under the density at one temperature.

    At temperature 0 the particles are exact draws: they are evaluated and stay.

    Returns:
        The moved particles, the new log scale, and what was done.

    References:
        Chopin and Papaspiliopoulos (2020), chapter 17, for the stopping rule on the
        distance travelled.
    """
    start, kernel, weights = particles.x, moves.kernel, jnp.exp(log_weights)
    goal = kernel.target_acceptance(start.shape[1])
    limit = jnp.where(temperature > 0, moves.most if moves.number is None else moves.number, 0)

    def unfinished(carry: tuple[_Walk, _Progress]) -> Bool[Array, ""]:
        return (carry[0].count < limit) & ~carry[1].settled

    def move(carry: tuple[_Walk, _Progress]) -> tuple[_Walk, _Progress]:
        before, progress = carry
        walk = _move(kernel, log_terms, before, weights, temperature, factor, key=key)
        refresh, moved = before.count < 0, walk.particles
        start_tilt = jnp.where(refresh, moved.log_tilt, progress.start_tilt)
        travelled = jnp.minimum(
            _travelled(moved.x, start, weights),
            _travelled(moved.log_tilt[:, None], start_tilt[:, None], weights),
        )
        # A scale still far off also makes no way; that is no reason to stop.
        stagnant = (travelled <= _STAGNANT * progress.travelled) & (walk.rate >= 0.3 * goal)
        mixed = jnp.asarray(moves.number is None) & (stagnant | (travelled >= _INDEPENDENT))
        travelled = jnp.where(refresh, progress.travelled, travelled)
        return walk, _Progress(start_tilt, travelled, mixed & ~refresh)

    first = _Progress(particles.log_tilt, jnp.zeros((), log_scale.dtype), jnp.asarray(False))
    walk, _ = jax.lax.while_loop(
        unfinished, move, (_set_out(kernel, particles, log_scale), first)
    )
    return walk.particles, walk.log_scale, walk.stats(start, weights)


def move_chains(
    moves: Moves,
    log_terms: LogTerms,
    particles: Particles,
    chains: int,
    temperature: Scalar,
    factor: Factor,
    log_scale: Scalar,
    *,
    key: PRNGKey,
) -> tuple[Particles, Scalar, MoveStats]:
    """Make particles the states of chains, all of which are kept: waste-free moves.

    References:
        Dau and Chopin (2022), doi:10.1111/rssb.12475.
    """
    length = particles.x.shape[0] // chains
    weights = jnp.full((chains,), 1.0 / chains, wide_dtype())

    def evaluate():
        found = guard(particles.x, *jax.vmap(log_terms)(particles.x))
        return found, log_scale, no_moves()

    def walk_on():
        starts = jax.tree.map(lambda v: v[::length], particles)
        walk = _set_out(moves.kernel, starts, log_scale)

        def move(walk, _):
            walk = _move(moves.kernel, log_terms, walk, weights, temperature, factor, key=key)
            return walk, walk.particles

        walk, states = jax.lax.scan(move, walk, None, length)
        rows = lambda v: jnp.swapaxes(v, 0, 1).reshape(-1, *v.shape[2:])
        return jax.tree.map(rows, states), walk.log_scale, walk.stats(starts.x, weights)

    return jax.lax.cond(temperature > 0, walk_on, evaluate)


def _acceptance(
    particles: Particles, proposal: Proposal, temperature: Scalar
) -> Float[Array, " particle"]:
    log_ratio = (
        proposal.particles.log_density(temperature)
        - particles.log_density(temperature)
        + proposal.log_correction
    )
    alive = proposal.particles.log_tilt > -jnp.inf
    return jnp.where(alive, acceptance_probability(log_ratio), 0.0)


def acceptance_probability(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the probability of Metropolis acceptance; 0 for a ratio of NaN."""
    # Say outright what is refused: fused by XLA on CPU, `minimum` has been seen to drop a
    # NaN that it keeps when run by itself, and a divergent proposal was accepted.
    return jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))


def _travelled(
    values: Float[Array, "particle dim"],
    start: Float[Array, "particle dim"],
    weights: Float[Array, " particle"],
) -> Scalar:
    """Return half the mean squared displacement over the variance at the start.

    Of the slowest column; it estimates 1 - correlation. Columns that never varied are left
    out.
    """
    # A particle of weight zero may lie anywhere, also at infinity: 0 * inf is not 0.
    alive = weights[:, None] > 0
    values = jnp.where(alive, values, 0.0).astype(weights.dtype)
    start = jnp.where(alive, start, 0.0).astype(weights.dtype)
    variance = weights @ (start - (weights @ start)[None]) ** 2
    displacement = 0.5 * (weights @ (values - start) ** 2)
    return jnp.min(jnp.where(variance > 0, displacement / variance, jnp.inf))


def _growth(
    values: Float[Array, "particle dim"],
    start: Float[Array, "particle dim"],
    weights: Float[Array, " particle"],
) -> Scalar:
    """Return by what share of itself the variance has grown, in the mean over columns.

    By pairs of a particle before and after, and 0 within the error of that mean.
    """
    alive = weights[:, None] > 0
    values, start = (jnp.where(alive, x, 0.0).astype(weights.dtype) for x in (values, start))
    centre = (weights @ start)[None]
    before, after = (start - centre) ** 2, (values - centre) ** 2
    variance = weights @ before
    unit = jnp.where(variance > 0, variance, jnp.inf)
    change = jnp.mean((after - before) / unit[None], axis=1)
    mean = weights @ change
    error = jnp.sqrt(weights**2 @ (change - mean) ** 2)
    return jnp.where(mean > _SURE * error, mean, 0.0)
