"""Repeated moves at one temperature: covariance, scale and number of moves are tuned here."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from ...core._types import PRNGKey, Scalar
from ._kernels import AbstractKernel, Factor, LogTerms, Particles, Proposal
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
# A dense factor costs d^2 a particle and move, and needs many particles a dimension.
_MAX_DENSE = 100
_PARTICLES_PER_DIMENSION = 10


class MoveStats(NamedTuple):
    """What the moves at one temperature did.

    Attributes:
        acceptance_rate: Mean over moves and particles.
        num_moves: Moves of each particle.
        num_evaluations: Density (or gradient) evaluations per particle.
    """

    acceptance_rate: Scalar
    num_moves: Int[Array, ""]
    num_evaluations: Int[Array, ""]


def no_moves() -> MoveStats:
    """Return what no moves did."""
    none = jnp.asarray(0, jnp.int32)
    return MoveStats(jnp.zeros((), wide_dtype()), none, none)


class _Carry(eqx.Module):
    count: Int[Array, ""]  # moves done; -1 before the refresh
    particles: Particles
    gradient: Float[Array, "particle dim"] | None
    log_scale: Scalar
    acceptance: Scalar  # summed over moves
    start_tilt: Float[Array, " particle"]
    travelled: Scalar
    settled: Bool[Array, ""]
    num_evaluations: Int[Array, ""]


class Moves(NamedTuple):
    """How particles are to be moved.

    Attributes:
        kernel: The proposal.
        metric: `"dense"`, `"diagonal"` or `"auto"`.
        number: Moves of every particle; None to go on until they have mixed.
        most: Most moves if `number` is None.
    """

    kernel: AbstractKernel
    metric: str
    number: int | None
    most: int


def is_dense(metric: str, dim: int, particles: int) -> bool:
    """Return whether moves are whitened by the whole covariance."""
    if metric == "auto":
        return dim <= _MAX_DENSE and _PARTICLES_PER_DIMENSION * dim <= particles
    return metric == "dense"


def covariance_factor(
    x: Float[Array, "particle dim"], log_weights: Float[Array, " particle"], dense: bool
) -> Factor:
    """Return a root of the weighted covariance of the particles."""
    alive = log_weights > -jnp.inf
    weights = jnp.exp(log_weights).astype(x.dtype)
    mean = weights @ jnp.where(alive[:, None], x, 0.0)
    centred = jnp.where(alive[:, None], x - mean[None], 0.0)
    unbiased = 1.0 / jnp.maximum(1.0 - jnp.sum(weights**2), 0.5)
    variance = unbiased * weights @ centred**2
    # A coordinate in which all particles agree gets the smallest scale that can undo it.
    tiny = jnp.finfo(x.dtype).eps * (1.0 + weights @ jnp.where(alive[:, None], x**2, 0.0))
    deviation = jnp.sqrt(jnp.maximum(variance, tiny))
    if not dense:
        return Factor(deviation)
    whole = (
        unbiased * (weights[:, None] * centred).T @ centred / jnp.outer(deviation, deviation)
    )
    ridge = 10.0 * x.shape[1] * jnp.finfo(x.dtype).eps
    root = jnp.linalg.cholesky(whole + ridge * jnp.eye(x.shape[1], dtype=x.dtype))
    usable = jnp.all(jnp.isfinite(root))
    root = jnp.where(usable, root, jnp.eye(x.shape[1], dtype=x.dtype))
    return Factor(deviation[:, None] * root)


def move_particles(
    moves: Moves,
    log_terms: LogTerms,
    particles: Particles,
    log_weights: Float[Array, " particle"],
    temperature: Scalar,
    log_scale: Scalar,
    *,
    key: PRNGKey,
) -> tuple[Particles, Scalar, MoveStats]:
    """Move all particles, many times, under the density at one temperature.

    At temperature 0 the particles are exact draws: they are evaluated and stay.

    Args:
        moves: How to move.
        log_terms: The two terms of the path's log density at one point.
        particles: Where the particles are; at temperature 0 only `x` is read.
        log_weights: Normalised log weights.
        temperature: Between 0 and 1.
        log_scale: Log of the kernel's scale; tuned further here.
        key: Belongs to this call.

    Returns:
        The moved particles, the new log scale, and what was done.

    References:
        Chopin and Papaspiliopoulos (2020), chapter 17, for the stopping rule on the
        distance travelled.
    """
    start, kernel = particles.x, moves.kernel
    num, dim = start.shape
    factor = covariance_factor(start, log_weights, is_dense(moves.metric, dim, num))
    weights = jnp.exp(log_weights)
    goal = kernel.target_acceptance(dim)
    limit = jnp.where(temperature > 0, moves.most if moves.number is None else moves.number, 0)

    def unfinished(carry: _Carry) -> Bool[Array, ""]:
        return (carry.count < limit) & ~carry.settled

    def move(carry: _Carry) -> _Carry:
        refresh = carry.count < 0
        key_propose, key_accept = jr.split(jr.fold_in(key, carry.count + 1))
        proposal = kernel.propose(
            log_terms,
            carry.particles,
            carry.gradient,
            temperature,
            factor,
            jnp.exp(carry.log_scale),
            refresh,
            key=key_propose,
        )
        probability = _acceptance(carry.particles, proposal, temperature)
        accept = refresh | (jr.uniform(key_accept, probability.shape) < probability)
        moved, gradient = jax.tree.map(
            lambda new, old: jnp.where(accept.reshape((-1,) + (1,) * (new.ndim - 1)), new, old),
            (proposal.particles, proposal.gradient),
            (carry.particles, carry.gradient),
        )
        rate = jnp.sum(weights * probability)
        start_tilt = jnp.where(refresh, moved.log_tilt, carry.start_tilt)
        travelled = jnp.minimum(
            _travelled(moved.x, start, weights),
            _travelled(moved.log_tilt[:, None], start_tilt[:, None], weights),
        )
        # A scale still far off also makes no way; that is no reason to stop.
        stagnant = (travelled <= _STAGNANT * carry.travelled) & (rate >= 0.3 * goal)
        mixed = jnp.asarray(moves.number is None) & (stagnant | (travelled >= _INDEPENDENT))
        return _Carry(
            count=carry.count + 1,
            particles=moved,
            gradient=gradient,
            log_scale=jnp.where(
                refresh, carry.log_scale, carry.log_scale + GAIN * (rate - goal)
            ),
            acceptance=carry.acceptance + jnp.where(refresh, 0.0, rate),
            start_tilt=start_tilt,
            travelled=jnp.where(refresh, carry.travelled, travelled),
            settled=mixed & ~refresh,
            num_evaluations=carry.num_evaluations + proposal.num_evaluations,
        )

    zero = jnp.zeros((), log_scale.dtype)
    end = jax.lax.while_loop(
        unfinished,
        move,
        _Carry(
            count=jnp.asarray(-1, jnp.int32),
            particles=particles,
            gradient=kernel.empty_gradient(start),
            log_scale=log_scale,
            acceptance=zero,
            start_tilt=particles.log_tilt,
            travelled=zero,
            settled=jnp.asarray(False),
            num_evaluations=jnp.asarray(0, jnp.int32),
        ),
    )
    rate = end.acceptance / jnp.maximum(end.count, 1).astype(zero.dtype)
    return end.particles, end.log_scale, MoveStats(rate, end.count, end.num_evaluations)


def _acceptance(
    particles: Particles, proposal: Proposal, temperature: Scalar
) -> Float[Array, " particle"]:
    log_ratio = (
        proposal.particles.log_density(temperature)
        - particles.log_density(temperature)
        + proposal.log_correction
    )
    # Say outright what is refused: fused by XLA on CPU, `minimum` has been seen to drop a
    # NaN that it keeps when run by itself, and a divergent proposal was accepted.
    usable = (proposal.particles.log_tilt > -jnp.inf) & ~jnp.isnan(log_ratio)
    return jnp.where(usable, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)


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
