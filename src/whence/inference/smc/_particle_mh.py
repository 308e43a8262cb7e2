"""Particle marginal Metropolis-Hastings: parameters by an estimate of their likelihood.

A particle filter's evidence is an unbiased estimate of the likelihood of parameters, whatever
the number of particles. A Metropolis chain that keeps the estimate with the parameters, and
never refreshes it, has their exact posterior; with a path drawn from the same filter, the
exact joint posterior of parameters and states.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from ...core._batches import by_draw
from ...core._cache import remembering
from ...core._convert import fraction, whole
from ...core._engine import AbstractEngine, Info, Sample, Schedule, Trace, never
from ...core._feynman_kac import AbstractSequenceTarget, sequence_of
from ...core._flat import flat_init, flat_view
from ...core._require import check_positions
from ...core._results import RESULTS
from ...core._start import MAX_STARTS, find_start
from ...core._target import AbstractTarget
from ...core._types import PRNGKey, Scalar
from ...diagnostics._records import Remarks
from .._chain_sample import chain_schedule
from ._filter import ParticleFilter, filter_field, log_evidence_error, run_filter
from ._moves import acceptance_probability
from ._smoothing import ancestral_path

# A standard deviation of the estimate above this wastes more steps than the particles that it
# saves are worth: 1.2 to 1.7 in the papers.
_NOISY = 1.7


class Visit(eqx.Module):
    """Parameters with what a filter found of them."""

    x: Float[Array, " dim"]
    log_density: Scalar  # log prior plus the estimate, in nats
    error: Scalar  # standard error of the estimate
    path: PyTree


class _State(eqx.Module):
    here: Visit
    root: Float[Array, "dim dim"]  # of the proposal's covariance
    is_finite: Bool[Array, ""]


class AbstractParticleChains(AbstractEngine):
    """Chains of parameters and states; their state says whether its start `is_finite`."""

    chains: eqx.AbstractVar[int]
    warmup: eqx.AbstractVar[int]
    draws: eqx.AbstractVar[int]

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def schedule(self) -> Schedule:
        return chain_schedule(self.chains, self.warmup, self.draws, homogeneous=True)

    def done(self, state: Any) -> Bool[Array, ""]:
        return never()

    def result(self, state: Any) -> RESULTS:
        return RESULTS.where(state.is_finite, RESULTS.successful, RESULTS.nonfinite_start)


class ParticleMH(AbstractParticleChains):
    """Particle marginal Metropolis-Hastings on a state-space model.

    Parameters start at the best of a hundred places, half of them draws of the prior, and move
    by a Gaussian random walk whose covariance is adapted in warm-up; a particle filter
    estimates the likelihood of each proposal, and one of its paths is proposed with it.
    The draws are of parameters and states jointly, without error from the number of particles;
    with too few the chain sticks, and `diagnose` says so. A step costs a whole filter.

    Attributes:
        particles: Number of particles of the filter.
        chains: Independent chains.
        warmup: Steps of each chain that adapt the random walk; they are not draws.
        draws: Steps kept of each chain.
        filter: How to filter, a `ParticleFilter`, in place of `particles`.
        target_acceptance: Acceptance rate that the size of the random walk is adapted to.

    References:
        Andrieu, Doucet and Holenstein (2010), doi:10.1111/j.1467-9868.2009.00736.x.
        Vihola (2012), robust adaptive Metropolis, doi:10.1007/s11222-011-9269-5.
        Roberts and Rosenthal (2009), one coordinate at a time, doi:10.1198/jcgs.2009.06134.
        Doucet, Pitt, Deligiannidis and Kohn (2015), doi:10.1093/biomet/asu075.
    """

    particles: int = eqx.field(default=200, converter=whole("particles", least=2))
    chains: int = eqx.field(default=4, converter=whole("chains", least=1))
    warmup: int = eqx.field(default=500, converter=whole("warmup", least=0))
    draws: int = eqx.field(default=1000, converter=whole("draws", least=1))
    filter: ParticleFilter | None = filter_field()
    target_acceptance: float = eqx.field(default=0.2, converter=fraction("target_acceptance"))

    @property
    def settings(self) -> ParticleFilter:
        """The filter that is run."""
        return ParticleFilter(self.particles) if self.filter is None else self.filter

    def validate(self, target: AbstractTarget) -> None:
        sequence = sequence_of(target)
        check_positions(sequence, self.name)
        self.settings.validate(sequence)

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> _State:
        return _State(*find_visit(target, self.settings, key=key))

    def step(
        self, target: AbstractTarget, state: _State, index: Array, *, key: PRNGKey
    ) -> tuple[_State, Info]:
        key_move, key_filter, key_accept = jr.split(key, 3)
        here, root = state.here, state.root
        noise = jump(here.x, index, self.warmup, key=key_move)
        there = visit(sequence_of(target), self.settings, here.x + root @ noise, key_filter)
        probability = acceptance_probability(there.log_density - here.log_density)
        accept = jr.uniform(key_accept, (), probability.dtype) < probability
        here = jax.tree.map(lambda new, old: jnp.where(accept, new, old), there, here)
        root = adapted(root, noise, probability, self.target_acceptance, index, self.warmup)
        state = _State(here, root, state.is_finite)
        stats = {
            "acceptance_rate": probability.astype(noise.dtype),
            "log_density_estimate": here.log_density,
            "log_evidence_error": there.error,
        }
        return state, Info(position=(here.x, here.path), stats=stats)

    def posterior(
        self, target: AbstractTarget, state: _State, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        draws = trace.sampling
        assert draws is not None  # the loop asks only once there are draws
        positions, lp = joined(target, draws.position)
        stats = dict(draws.stats)
        if np.all(np.isfinite(lp)):
            stats["lp"] = np.asarray(lp)
        error = float(np.median(stats["log_evidence_error"]))
        said = ()
        if not error <= _NOISY:
            said = (
                f"The log likelihood is estimated with a standard error of {error:.1f}, so "
                "that chains stick to where it came out high: use more particles, or a filter "
                f"with `proposal='guided'`, for {_NOISY} or less",
            )
        return Sample(positions=positions, stats=stats, method="mcmc", record=Remarks(said))


def find_visit(
    target: AbstractTarget, settings: ParticleFilter, *, key: PRNGKey
) -> tuple[Visit, Float[Array, "dim dim"], Bool[Array, ""]]:
    """Return where a chain starts, the root of its first steps, and whether it can.

    It is the best of a hundred places, by an estimate that is then made anew: a chain would
    stick to the luckiest of a hundred.
    """
    sequence = sequence_of(target)
    key_places, key_scores, key = jr.split(key, 3)
    keys = jr.split(key_places, MAX_STARTS)
    places = jax.vmap(lambda k: flat_init(sequence, key=k))(keys)
    score = lambda pair: visit(sequence, settings, *pair).log_density
    scores = jax.lax.map(score, (places, jr.split(key_scores, MAX_STARTS)))
    best = places[jnp.argmax(jnp.where(jnp.isnan(scores), -jnp.inf, scores))]

    def attempt(key):
        here = visit(sequence, settings, best, key)
        return here, jnp.isfinite(here.log_density)

    like = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(lambda k: attempt(k)[0], key)
    )
    # The places are of priors, or where these are vague of a box: the nearer half has the unit.
    far = lambda k: jnp.abs(ravel_pytree(sequence.init(key=k))[0] - best)
    near = jnp.quantile(jax.vmap(far)(keys), 0.25, 0)
    spread = jnp.where(near > 0, near, 1.0)
    here, is_finite = find_start(attempt, like, key=key)
    return here, jnp.diag(0.5 / len(best) ** 0.5 * spread), is_finite


def visit(sequence: AbstractSequenceTarget, settings: ParticleFilter, x, key) -> Visit:
    position = flat_view(sequence)[1](x)
    key_filter, key_path = jr.split(key)
    cloud, history = run_filter(
        settings, sequence, sequence.constrain(position), key=key_filter
    )
    log_prior = sequence.log_prior(position)
    found = cloud.log_evidence.value
    log_density = log_prior.astype(found.dtype) + found
    path = ancestral_path(history, key=key_path)
    return Visit(x, log_density, log_evidence_error(cloud), path)


def jump(like: Array, index: Array, warmup: int, *, key: PRNGKey) -> Array:
    """Return the noise of a step: in the first half of the warm-up, of one coordinate in turn.

    A prior may be wider than the posterior by another factor in each coordinate, and steps of
    all at once would be as short in all as the narrowest needs (Roberts and Rosenthal 2009).
    """
    noise = jr.normal(key, like.shape, like.dtype)
    out_of_turn = jnp.arange(len(noise), dtype=index.dtype) != index % len(noise)
    return jnp.where((index < warmup // 2) & out_of_turn, jnp.zeros_like(noise), noise)


def adapted(root, noise, probability, goal, index, warmup):
    """Return the proposal's root after one step of robust adaptive Metropolis.

    `root root'` is widened or narrowed along the step that was proposed, by how far its
    acceptance probability was from the goal (Vihola 2012, equation 1): as fast as may be while
    coordinates are in turn, then ever less.
    """
    count = jnp.maximum(index - warmup // 2 + 1, 1).astype(noise.dtype)
    gain = jnp.minimum(1.0, noise.shape[0] * count ** (-2 / 3))
    step = root @ noise / jnp.sqrt(jnp.sum(noise**2))
    change = gain * (probability.astype(noise.dtype) - goal)
    new = jnp.linalg.cholesky(root @ root.T + change * jnp.outer(step, step))
    return jnp.where((index < warmup) & jnp.all(jnp.isfinite(new)), new, root)


@remembering
def joined(target: AbstractTarget, visited: Any) -> tuple[Any, Array]:
    """Return joint positions and their log density, with axes `(chain, draw)`."""
    sequence = sequence_of(target)
    unflatten = flat_view(sequence)[1]

    def one(pair):
        position = sequence.join(unflatten(pair[0]), pair[1])
        return position, target.log_density(position)

    return by_draw(one, jax.tree.map(jnp.asarray, visited), 100)
