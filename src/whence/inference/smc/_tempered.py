"""Tempered sequential Monte Carlo: from prior to posterior by adaptive temperatures."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float

from ...core._convert import flag, fraction, number, one_of, whole
from ...core._engine import AbstractEngine, Info, Sample, Schedule, Trace
from ...core._feynman_kac import AbstractFeynmanKac
from ...core._results import RESULTS
from ...core._target import AbstractTarget
from ...core._types import PRNGKey, Scalar
from ...diagnostics._records import ParticleHistory
from .._settings import named
from ._driver import Cloud, Resampler, advance, start, weigh_at_last
from ._kernels import AbstractKernel, Particles
from ._metric import AbstractMetric, Factor
from ._moves import Moves, MoveStats, move_chains, move_particles, no_moves
from ._path import PATHS, AbstractPath, Reference, choose_path, log_terms
from ._persistent import Pool
from ._record import (
    flat_positions,
    kernel_field,
    made_moves,
    metric_field,
    only_cloud,
    recorded,
    resampling_field,
    step_stats,
    weighted_sample,
)
from ._resampling import SCHEMES, AbstractResampling, Repeated
from ._weights import conditional_ess_fraction, normalise, wide_dtype

# Tempering has stalled when a step is below 1e-6 *and* below 1% of the temperature: from
# a vague prior the first temperatures may be 1e-12, but then they grow by factors.
_SMALLEST_DELTA = 1e-6
_SMALLEST_GROWTH = 1e-2
# Halvings of the interval [1e-30, 1] * largest delta in its logarithm: to 1e-9 of delta.
_HALVINGS = 36
# At the last temperature rounds of moves go on while they spread the particles by more than a
# tenth of their variance: weights did not bring them there, and moves have not yet.
_GROWING, _ROUNDS = 0.1, 10
_SHOWN = 6  # temperatures in a message
_LOG_SMALLEST = -30.0 * 2.302585092994046


class Tempered(NamedTuple):
    """What the particles share along the path; flags tell how the run stands."""

    temperature: Scalar
    recent: Float[Array, " stage"]  # the last temperatures
    log_scale: Scalar
    factor: Factor  # of the particles as they are weighted at this temperature
    reference: Reference | None
    pool: Pool | None  # of persistent particles
    moves: MoveStats
    num_nonfinite: Array
    num_steps: Array
    rounds: Array  # of moves at the last temperature
    finished: Bool[Array, ""]
    stalled: Bool[Array, ""]
    nonfinite: Bool[Array, ""]


class Tempering(AbstractFeynmanKac):
    """The Feynman-Kac model of one tempered run.

    Its mutation at temperature 0 only evaluates the initial particles, so that the
    density is compiled once; its potential chooses the next temperature.
    """

    target: AbstractTarget
    num: int  # particles
    ess: float  # conditional effective sample size to keep, as a fraction
    path: str | AbstractPath
    moves: Moves
    chains: int | None
    stages: int | None  # that persistent particles may have

    def initial(self, *, key: PRNGKey) -> tuple[Particles, Tempered]:
        path = choose_path(self.target, self.path)
        x, reference = path.draw(self.target, self.num, key=key)
        zeros = jnp.zeros((x.shape[0],), wide_dtype())
        no = jnp.asarray(False)
        none = jnp.asarray(0, jnp.int32)
        control = Tempered(
            temperature=jnp.zeros((), wide_dtype()),
            recent=jnp.zeros((_SHOWN,), wide_dtype()),
            factor=self.moves.metric.factor(x, normalise(zeros)[0]),
            log_scale=jnp.log(
                jnp.asarray(self.moves.kernel.first_scale(x.shape[1]), wide_dtype())
            ),
            reference=reference,
            pool=None if self.stages is None else Pool.empty(x, self.stages),
            moves=no_moves(),
            num_nonfinite=none,
            num_steps=none,
            rounds=none,
            finished=no,
            stalled=no,
            nonfinite=no,
        )
        return Particles(x, zeros, zeros), control

    def mutate(
        self,
        particles: Particles,
        log_weights: Float[Array, " particle"],
        control: Tempered,
        *,
        key: PRNGKey,
    ) -> tuple[Particles, Tempered]:
        terms = lambda x: log_terms(self.target, control.reference, x)
        pool, factor = control.pool, control.factor
        founders = jnp.arange(self.num, dtype=jnp.int32)
        if pool is not None:
            key, key_choose = jr.split(key)
            choose = lambda p: p.choose(control.temperature, key=key_choose)
            particles, founders = jax.lax.cond(
                pool.size > 0, choose, lambda _: (particles, founders), pool
            )
            factor = self.moves.metric.factor(particles.x, log_weights)
        at = control.temperature, factor, control.log_scale
        if self.chains is None:
            found = move_particles(self.moves, terms, particles, log_weights, *at, key=key)
        else:
            found = move_chains(self.moves, terms, particles, self.chains, *at, key=key)
        particles, log_scale, stats = found
        if pool is not None:
            pool = pool.grown(particles, founders)
        return particles, control._replace(log_scale=log_scale, moves=stats, pool=pool)

    def log_potential(
        self, particles: Particles, log_weights: Float[Array, " particle"], control: Tempered
    ) -> tuple[Float[Array, " particle"], Tempered]:
        old, pool = control.temperature, control.pool
        new = next_temperature(log_weights, particles.log_tilt, old, self.ess, pool)
        alive = (log_weights > -jnp.inf) & (particles.log_tilt > -jnp.inf)
        finished = old >= 1.0
        nonfinite = ~finished & ~jnp.any(alive)
        stalled = ~finished & ~nonfinite & (new < 1.0)
        stalled &= (new - old < _SMALLEST_DELTA) & (new - old < _SMALLEST_GROWTH * old)
        # After the last temperature, and where the run must end, weights stay as they are.
        stays = finished | nonfinite | stalled
        tilt = jnp.where(alive, (new - old) * particles.log_tilt, -jnp.inf)
        tilt, new = jnp.where(stays, 0.0, tilt), jnp.where(stays, old, new)
        if pool is not None:
            before = pool.log_evidences[pool.size - 1]
            pool, found = pool.heading(new)
            tilt = jnp.full_like(tilt, jnp.where(nonfinite, 0.0, found - before))
        return tilt, control._replace(
            temperature=new,
            pool=pool,
            recent=jnp.append(control.recent[1:], new),
            factor=self.moves.metric.factor(particles.x, normalise(log_weights + tilt)[0]),
            num_nonfinite=jnp.sum(particles.log_tilt == -jnp.inf, dtype=jnp.int32),
            num_steps=control.num_steps + 1,
            rounds=control.rounds + finished.astype(jnp.int32),
            finished=finished,
            stalled=stalled,
            nonfinite=nonfinite,
        )


class TemperedSMC(AbstractEngine):
    """Adaptive tempered sequential Monte Carlo, with an estimate of the evidence.

    Particles are drawn from the prior, then weighted, resampled and moved along
    prior * likelihood^temperature. Each temperature is the highest that leaves the
    weighted particles a conditional effective sample size of `ess * particles`. Where
    the target cannot draw from a proper prior, the path starts from a Gaussian instead
    and works on any target; the evidence is then the integral of `exp(log_density)`.

    The draws are weighted. The evidence estimate is consistent; the adaptation biases it
    by a part of order 1 / particles. A multimodal posterior is represented as far as
    the initial particles found its modes.

    Attributes:
        particles: Number of particles, at least 2.
        ess: Target of the conditional effective sample size as a fraction, in (0, 1).
            Higher takes more temperatures, and lowers the error of the evidence.
        moves: Moves of every particle at each temperature; None goes on until they have
            mixed.
        chains: Waste-free: only so many particles are resampled, each begins a chain of
            `particles / chains` states, and all states of chains are particles. None: off.
        persistent: Whether particles of all temperatures are kept and weighted anew at each,
            as draws of their mixture: more draws for the same moves. They are resampled
            systematically, and `threshold` has no effect.
        kernel: `"hmc"`, `"mala"`, `"independent"`, or `"rwm"` for likelihoods without a
            useful gradient, or an `AbstractKernel`.
        resampling: `"systematic"`, `"stratified"`, `"residual"`, `"multinomial"`, `"ssp"` or
            `"killing"`, or an `AbstractResampling`.
        threshold: Resample when the effective sample size is at most this fraction;
            above `ess`, so that only a short step goes without. 0 is annealed importance
            sampling (Neal 2001, doi:10.1023/A:1008923215028).
        metric: `"dense"` or `"diagonal"` covariance of the particles to whiten moves, or an
            `AbstractMetric`; `"auto"` is dense up to 100 dimensions if there are 10 particles
            to each.
        path: `"prior"`, `"reference"` (a Gaussian fitted to initial positions), an
            `AbstractPath` such as `ReferencePath(mean, scale)`, or `"auto"`: the prior if the
            target can draw from it.
        max_moves: Most moves at a temperature if `moves` is None.
        max_steps: Most steps: one per temperature, and one to weigh the first particles. With
            `persistent` there is room for the particles of so many temperatures, in float64
            about `8 * max_steps * particles * (dim + 6)` bytes.

    References:
        Del Moral, Doucet and Jasra (2006), doi:10.1111/j.1467-9868.2006.00553.x.
        Zhou, Johansen and Aston (2016), doi:10.1080/10618600.2015.1060885.
        Dau and Chopin (2022), waste-free SMC, doi:10.1111/rssb.12475 [chains: int].
        Karamanis and Seljak (2024), persistent sampling, arXiv:2407.20722 [persistent: True].
        Douc, Cappe and Moulines (2005), resampling, doi:10.1109/ISPA.2005.195385.
        Neal (2011), arXiv:1206.1901 [kernel: hmc].
        Roberts, Gelman and Gilks (1997), doi:10.1214/aoap/1034625254 [kernel: rwm].
        Roberts and Rosenthal (1998), doi:10.1111/1467-9868.00123 [kernel: mala].
        Chopin (2002), doi:10.1093/biomet/89.3.539 [kernel: independent].
    """

    particles: int = eqx.field(default=2048, converter=whole("particles", least=2))
    ess: float = eqx.field(default=0.5, converter=fraction("ess"))
    moves: int | None = eqx.field(
        default=None, converter=whole("moves", least=1, optional=True)
    )
    chains: int | None = eqx.field(
        default=None, converter=whole("chains", least=2, optional=True)
    )
    persistent: bool = eqx.field(default=False, converter=flag("persistent"))
    kernel: str | AbstractKernel = kernel_field()
    resampling: str | AbstractResampling = resampling_field()
    threshold: float = eqx.field(default=0.75, converter=number("threshold", least=0, most=1))
    metric: str | AbstractMetric = metric_field()
    path: str | AbstractPath = eqx.field(
        default="auto", converter=one_of("path", PATHS, kind=AbstractPath)
    )
    max_moves: int = eqx.field(default=100, converter=whole("max_moves", least=1))
    max_steps: int = eqx.field(default=200, converter=whole("max_steps", least=2))

    def __check_init__(self):
        if self.chains is None:
            return
        if self.persistent:
            raise ValueError(
                f"`chains` must be None with `persistent=True`; got {self.chains}."
            )
        if self.particles % self.chains or self.particles == self.chains:
            raise ValueError(
                f"`chains` must divide `particles`, {self.particles}, into chains of two or "
                f"more; got {self.chains}."
            )
        if self.moves is not None:
            raise ValueError(
                "`moves` must be None with `chains`, where it is particles / chains; got "
                f"{self.moves}."
            )

    @property
    def name(self) -> str:
        return "TemperedSMC"

    @property
    def schedule(self) -> Schedule:
        return Schedule(1, 0, self.max_steps, ensemble=("particle", self.particles))

    def validate(self, target: AbstractTarget) -> None:
        choose_path(target, self.path)

    def model(self, target: AbstractTarget) -> Tempering:
        """Return the Feynman-Kac model that is run."""
        stages = self.max_steps if self.persistent else None
        moves = made_moves(self)
        return Tempering(
            target, self.particles, self.ess, self.path, moves, self.chains, stages
        )

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> Cloud:
        return start(self.model(target), key=key)

    def step(
        self, target: AbstractTarget, state: Cloud, index: Array, *, key: PRNGKey
    ) -> tuple[Cloud, Info]:
        before: Tempered = state.control
        resampler = Resampler(self.resampling, -1.0 if self.persistent else self.threshold)
        if self.chains is not None:
            scheme = Repeated(named(self.resampling, SCHEMES), self.chains)
            # There are chains from the first move on, and every step resamples.
            resampler = Resampler(scheme, jnp.where(before.temperature > 0, 2.0, -1.0))
        state, did = advance(self.model(target), state, resampler, key=key)
        after: Tempered = state.control
        stats = step_stats(state, did, after.moves, before.log_scale) | {
            "temperature": before.temperature,
            "next_temperature": after.temperature,
            "num_nonfinite": after.num_nonfinite,
        }
        if (pool := after.pool) is not None:
            stats["ess"] = pool.sums(after.temperature)[1]
            state = eqx.tree_at(lambda cloud: cloud.mixing_variance, state, pool.variance)
        return state, Info(position=None, stats=stats)

    def done(self, state: Cloud) -> Bool[Array, ""]:
        control: Tempered = state.control
        growing = (control.moves.growth > _GROWING) & (control.rounds < _ROUNDS)
        moved = control.finished & ~(growing & jnp.asarray(self.moves is None))
        return moved | control.stalled | control.nonfinite

    def result(self, state: Cloud) -> RESULTS:
        control: Tempered = state.control
        exhausted = ~control.finished & (control.num_steps >= self.max_steps)
        result = RESULTS.where(exhausted, RESULTS.max_steps, RESULTS.successful)
        result = RESULTS.where(control.stalled, RESULTS.tempering_stalled, result)
        return RESULTS.where(control.nonfinite, RESULTS.nonfinite_start, result)

    def explain(self, target: AbstractTarget, state: Cloud) -> str:
        """Return where the temperatures stand."""
        control: Tempered = only_cloud(state).control
        steps = min(int(control.num_steps), _SHOWN)
        last = ", ".join(f"{float(t):.4g}" for t in np.asarray(control.recent)[-steps:])
        return (
            f"After {int(control.num_steps)} steps the last inverse temperatures were {last} "
            "(0 is where it starts, 1 the posterior)."
        )

    def posterior(
        self, target: AbstractTarget, state: Cloud, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        last = only_cloud(state)
        pool = last.control.pool
        whole = _finish(last) if pool is None else pool.cloud(last)
        return weighted_sample(whole, *flat_positions(target, whole.particles), _history(trace))


def next_temperature(
    log_weights: Float[Array, " particle"],
    log_tilt: Float[Array, " particle"],
    temperature: Scalar,
    ess: float,
    pool: Pool | None = None,
) -> Scalar:
    """Return the highest temperature that keeps the conditional ESS fraction at `ess`.

    Of a pool, the effective sample size over the particles of a stage. Either falls as the
    temperature rises, so bisection finds it; in the logarithm of the step, as steps from a
    vague prior may be many powers of ten below 1.
    """

    def fraction(step: Scalar) -> Scalar:
        if pool is None:
            return conditional_ess_fraction(log_weights, log_tilt, step)
        return pool.sums(temperature + step)[1] / len(log_tilt)

    largest = 1.0 - temperature
    bracket = (jnp.full((), _LOG_SMALLEST, wide_dtype()), jnp.zeros((), wide_dtype()))

    def halve(i: Any, bracket: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        low, high = bracket
        middle = jnp.where(i == 0, high, 0.5 * (low + high))  # first of all, try the end
        keeps = fraction(largest * jnp.exp(middle)) >= ess
        return jnp.where(keeps, middle, low), jnp.where(keeps, high, middle)

    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, bracket)
    return jnp.where(low == high, 1.0, temperature + largest * jnp.exp(low))


def _finish(cloud: Cloud) -> Cloud:
    """Take what is left of the path in one step of importance sampling.

    Only a run that ended early has anything left. However large the variance, weights and
    evidence then mean the target.
    """
    control: Tempered = cloud.control
    rest = (1.0 - control.temperature) * cloud.particles.log_tilt
    return weigh_at_last(cloud, jnp.where(control.temperature < 1.0, rest, 0.0))


def _history(trace: Trace) -> ParticleHistory:
    """Turn statistics by step into statistics by temperature above 0.

    A step reaches its temperature by the weights the step before has left: `ess`, the largest
    weight and `log_evidence_increment` come from there, what the moves did from the step.
    """
    if not (stats := recorded(trace)):
        return ParticleHistory()
    reached = ("ess", "largest_weight", "log_evidence_increment")
    moved = tuple(name for name in stats if name not in (*reached, "next_temperature"))
    table: dict[str, Any] = {name: stats[name][1:] for name in moved}
    table |= {name: stats[name][:-1] for name in reached}
    return ParticleHistory(**table, num_nonfinite_start=int(stats["num_nonfinite"][0]))
