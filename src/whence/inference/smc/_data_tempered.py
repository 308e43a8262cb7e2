"""Sequential Monte Carlo along the data: one row after another, from prior to posterior."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...core._cache import remembering
from ...core._convert import number, whole
from ...core._engine import AbstractEngine, AbstractOnlineEngine, Info, Sample, Schedule, Trace
from ...core._feynman_kac import AbstractFeynmanKac
from ...core._growing import rows_so_far
from ...core._results import RESULTS
from ...core._rows import check_rows
from ...core._target import AbstractDataTarget, AbstractTarget
from ...core._types import Position, PRNGKey, Scalar
from ...diagnostics._records import ParticleHistory
from ._driver import Advance, Cloud, Resampler, advance, start, weigh_at_last
from ._kernels import AbstractKernel, LogTerms, Particles
from ._metric import AbstractMetric
from ._moves import Moves, MoveStats, move_particles, no_moves
from ._path import PriorPath, no_prior, unflatten
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
from ._resampling import AbstractResampling
from ._weights import effective_sample_size, normalise, wide_dtype


class Arriving(eqx.Module):
    """Particles, and what the rows that come in now mean to each."""

    # Positions with log prior (`log_base`) and log likelihood of the rows so far (`log_tilt`).
    points: Particles
    # Log likelihood of the rows that come in, in nats; `-inf` where not finite.
    gain: Float[Array, " particle"]

    @property
    def x(self) -> Float[Array, "particle dim"]:
        """Flat positions."""
        return self.points.x


class Taken(NamedTuple):
    """What the particles share along the data; flags tell how the run stands."""

    rows: Int[Array, ""]  # that the weights know of
    missing: Bool[Array, ""]  # whether there are more
    uneven: Bool[Array, ""]  # whether the next step resamples, and therefore moves
    settled: Scalar  # relative variance of the evidence up to the last resampling
    variance: Scalar  # and up to now, if moves made the particles independent
    log_scale: Scalar
    moves: MoveStats
    num_steps: Array
    finished: Bool[Array, ""]
    nonfinite: Bool[Array, ""]


class Intake(AbstractFeynmanKac):
    """The Feynman-Kac model of one run: the potential is the likelihood of the next rows.

    Mutation comes after resampling and before the next rows: it moves particles under the
    posterior of the rows taken in, but only if there are copies to be told apart. The first
    mutation only evaluates the prior at the initial particles.
    """

    target: AbstractDataTarget
    num: int  # particles
    rows: int  # taken in by a step
    threshold: float
    moves: Moves

    def initial(self, *, key: PRNGKey) -> tuple[Arriving, Taken]:
        x, _ = PriorPath().draw(self.target, self.num, key=key)
        zeros = jnp.zeros((x.shape[0],), wide_dtype())
        control = nothing_taken(self.moves.kernel.first_scale(x.shape[1]))
        return Arriving(Particles(x, zeros, zeros), zeros), control

    def mutate(
        self,
        particles: Arriving,
        log_weights: Float[Array, " particle"],
        control: Taken,
        *,
        key: PRNGKey,
    ) -> tuple[Arriving, Taken]:
        is_first = control.num_steps == 0
        move = lambda: move_particles(
            self.moves,
            self.log_terms(control.rows),
            particles.points,
            log_weights,
            jnp.where(is_first, 0.0, 1.0).astype(wide_dtype()),
            self.moves.metric.factor(particles.x, log_weights),
            control.log_scale,
            key=key,
        )
        stay = lambda: (particles.points, control.log_scale, no_moves())
        points, log_scale, stats = jax.lax.cond(is_first | control.uneven, move, stay)
        gain = self._gain(points.x, control.rows)
        gain = jnp.where(jnp.isfinite(gain) & (points.log_tilt > -jnp.inf), gain, -jnp.inf)
        points = Particles(points.x, points.log_base, points.log_tilt + gain)
        return Arriving(points, gain), control._replace(log_scale=log_scale, moves=stats)

    def log_potential(
        self, particles: Arriving, log_weights: Float[Array, " particle"], control: Taken
    ) -> tuple[Float[Array, " particle"], Taken]:
        have = rows_so_far(self.target)
        return take_in(
            particles.gain, log_weights, control, have, rows=self.rows, threshold=self.threshold
        )

    def log_terms(self, rows: Int[Array, ""]) -> LogTerms:
        """Return log prior, and log likelihood of the first rows, of one flat position."""

        def terms(x: Float[Array, " dim"]) -> tuple[Scalar, Scalar]:
            position = unflatten(self.target, x)
            each = self.target.log_likelihood(position)
            taken = jnp.arange(each.shape[0], dtype=rows.dtype) < rows
            total = jnp.sum(jnp.where(taken, each, 0.0), dtype=wide_dtype())
            return self.target.log_prior(position).astype(wide_dtype()), total

        return terms

    def _gain(
        self, x: Float[Array, "particle dim"], rows: Int[Array, ""]
    ) -> Float[Array, " particle"]:
        numbers = rows + jnp.arange(self.rows, dtype=jnp.int32)
        have = rows_so_far(self.target)
        numbers_in = jnp.minimum(numbers, jnp.maximum(have - 1, 0))

        def gain(x):
            each = self.target.log_likelihood(unflatten(self.target, x), numbers_in)
            return jnp.sum(jnp.where(numbers < have, each, 0.0), dtype=wide_dtype())

        return jax.vmap(gain)(x)


def take_in(
    gain: Float[Array, " particle"],
    log_weights: Float[Array, " particle"],
    control: Taken,
    have: Int[Array, ""],
    *,
    rows: int,
    threshold: float,
) -> tuple[Float[Array, " particle"], Taken]:
    """Return log weight increments, and where the run stands once the next rows are in.

    Args:
        gain: Log density of the next rows, by particle, in nats; `-inf` where not finite.
        log_weights: Normalised.
        control: Where the run stands.
        have: Number of rows that there are.
        rows: Most rows to take in.
        threshold: Of the effective sample size, as a fraction of the particles.
    """
    num = gain.shape[0]
    taken = jnp.minimum(control.rows + rows, have)
    finished = control.rows >= have
    alive = (log_weights > -jnp.inf) & (gain > -jnp.inf)
    # Where the run must end, weights stay as they are.
    nonfinite = ~finished & ~jnp.any(alive)
    gain = jnp.where(finished | nonfinite, 0.0, gain)
    ess = effective_sample_size(normalise(log_weights + gain)[0])
    uneven = ess <= threshold * num
    # Between two resamplings this is importance sampling with one set of particles.
    variance = control.settled + 1 / ess - 1 / num
    return gain, control._replace(
        rows=taken,
        missing=taken < have,
        uneven=uneven,
        settled=jnp.where(uneven, variance, control.settled),
        variance=variance,
        num_steps=control.num_steps + 1,
        finished=finished,
        nonfinite=control.nonfinite | nonfinite,
    )


def nothing_taken(first_scale: float) -> Taken:
    """Return where a run stands before its first step."""
    no, none = jnp.asarray(False), jnp.asarray(0, jnp.int32)
    zero = jnp.zeros((), wide_dtype())
    log_scale = jnp.log(jnp.asarray(first_scale, wide_dtype()))
    return Taken(none, no, no, zero, zero, log_scale, no_moves(), none, no, no)


class AbstractAlongData(AbstractEngine):
    """An engine whose particles take in data one after the other."""

    resampling: eqx.AbstractVar[str | AbstractResampling]
    threshold: eqx.AbstractVar[float]
    max_steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def model(self, target: AbstractTarget) -> AbstractFeynmanKac:
        """Return the Feynman-Kac model that is run; its particles share what is `Taken`."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> Cloud:
        return start(self.model(target), key=key)

    def take(
        self, model: AbstractFeynmanKac, state: Cloud, *, key: PRNGKey
    ) -> tuple[Cloud, Advance]:
        """Return the cloud after the next data, and what the driver did."""
        resampler = Resampler(self.resampling, self.threshold)
        state, did = advance(model, state, resampler, key=key)
        # What the driver has added up step by step is for particles that move every step.
        variance = state.control.variance
        return eqx.tree_at(lambda cloud: cloud.mixing_variance, state, variance), did

    def step(
        self, target: AbstractTarget, state: Cloud, index: Array, *, key: PRNGKey
    ) -> tuple[Cloud, Info]:
        before: Taken = state.control
        state, did = self.take(self.model(target), state, key=key)
        after: Taken = state.control
        stats = step_stats(state, did, after.moves, before.log_scale) | {"rows": after.rows}
        return state, Info(position=None, stats=stats)

    def done(self, state: Cloud) -> Bool[Array, ""]:
        control: Taken = state.control
        return control.finished | control.nonfinite

    def result(self, state: Cloud) -> RESULTS:
        control: Taken = state.control
        exhausted = control.missing & (control.num_steps >= self.max_steps)
        result = RESULTS.where(exhausted, RESULTS.max_steps, RESULTS.successful)
        return RESULTS.where(control.nonfinite, RESULTS.nonfinite_start, result)


class DataTemperedSMC(AbstractAlongData, AbstractOnlineEngine):
    """Sequential Monte Carlo along the data, with an estimate of the evidence.

    Particles are drawn from the prior and weighted by the likelihood of one row of data
    after another. When their weights have grown uneven they are resampled, and moved under
    the posterior of the rows taken in so far. Since that is sooner or later a good part of
    all rows, moves become rare. So every posterior on the way is a by-product, and so is the
    probability of every row given those before it (`record.log_evidence_increment`), whose
    product is the evidence. New rows can be taken in as they come: see
    `whence.models.bandit.ModelTS`.

    The draws are weighted. A first row that the prior finds very surprising leaves few
    particles, and the error of the evidence says so: `TemperedSMC` has no such first step.
    Rows are taken in the order they have; where that is an order by size or by group, shuffle
    them. A move costs the likelihood of all rows, however few were taken in.

    Attributes:
        particles: Number of particles, at least 2.
        rows: Rows taken in by a step.
        threshold: Resample and move when the effective sample size is at most this fraction
            of the particles.
        moves: Moves of every particle after resampling; None goes on until they have mixed.
        kernel: As for `TemperedSMC`.
        resampling: As for `TemperedSMC`.
        metric: As for `TemperedSMC`.
        max_moves: Most moves in a row if `moves` is None.
        max_steps: Most steps: `ceil(data / rows)`, and one to move the last particles.

    References:
        Chopin (2002), "A sequential particle filter method for static models",
        doi:10.1093/biomet/89.3.539.
        Douc, Cappe and Moulines (2005), resampling, doi:10.1109/ISPA.2005.195385.
        Neal (2011), arXiv:1206.1901 [kernel: hmc].
        Roberts, Gelman and Gilks (1997), doi:10.1214/aoap/1034625254 [kernel: rwm].
        Roberts and Rosenthal (1998), doi:10.1111/1467-9868.00123 [kernel: mala].
    """

    particles: int = eqx.field(default=2048, converter=whole("particles", least=2))
    rows: int = eqx.field(default=1, converter=whole("rows", least=1))
    threshold: float = eqx.field(default=0.5, converter=number("threshold", least=0, most=1))
    moves: int | None = eqx.field(
        default=None, converter=whole("moves", least=1, optional=True)
    )
    kernel: str | AbstractKernel = kernel_field()
    resampling: str | AbstractResampling = resampling_field()
    metric: str | AbstractMetric = metric_field()
    max_moves: int = eqx.field(default=100, converter=whole("max_moves", least=1))
    max_steps: int = eqx.field(default=100_000, converter=whole("max_steps", least=2))

    @property
    def schedule(self) -> Schedule:
        return Schedule(1, 0, self.max_steps, ensemble=("particle", self.particles))

    def validate(self, target: AbstractTarget) -> None:
        self.validate_online(target)
        assert isinstance(target, AbstractDataTarget)
        assert target.num_data is not None
        needed = -(-target.num_data // self.rows) + 1
        if needed > self.max_steps:
            raise ValueError(
                f"`max_steps` must be at least {needed} for {target.num_data} rows of data, "
                f"{self.rows} a step; got {self.max_steps}."
            )

    def validate_online(self, target: AbstractTarget) -> None:
        has_rows = isinstance(target, AbstractDataTarget) and target.num_data is not None
        if not has_rows:
            raise ValueError(
                "DataTemperedSMC needs a target with a likelihood that is a product over data "
                f"rows; got a {type(target).__name__} without rows. Use TemperedSMC."
            )
        if obstacle := no_prior(target):
            raise ValueError(
                f"DataTemperedSMC needs a target whose prior can be drawn from: {obstacle}. "
                "Use TemperedSMC."
            )
        try:
            check_rows(target, self.rows)
        except ValueError as error:
            raise ValueError(
                "DataTemperedSMC needs a likelihood that is a product over data rows, and that "
                f"gives some rows when asked for them; that of this {type(target).__name__} "
                "does not, as in a time series or with one latent per row. Use TemperedSMC, or "
                f"mend what was found: {error}"
            ) from error

    def model(self, target: AbstractTarget) -> Intake:
        """Return the Feynman-Kac model that is run."""
        assert isinstance(target, AbstractDataTarget)  # as `validate` has made sure
        return Intake(target, self.particles, self.rows, self.threshold, made_moves(self))

    def explain(self, target: AbstractTarget, state: Cloud) -> str:
        """Return which rows no particle could have given."""
        return taken_explained(only_cloud(state).control, "row", self.rows)

    def draw(self, target: AbstractTarget, state: Cloud, *, key: PRNGKey) -> Position:
        chosen = jr.categorical(key, state.log_weights)
        return unflatten(target, state.particles.x[chosen])

    def posterior(
        self, target: AbstractTarget, state: Cloud, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        whole = _finish(self.model(target), only_cloud(state))
        found = flat_positions(target, whole.particles.points)
        return weighted_sample(whole, *found, intake_history(trace))


def taken_explained(control: Taken, noun: str, rows: int = 1) -> str:
    """Return where a run along the data ended."""
    last = int(control.rows) - 1
    if not bool(control.nonfinite):
        return f"It got as far as {noun} {last}."
    first = max(0, last - rows + 1)
    what = f"{noun} {last}" if first == last else f"{noun}s {first} to {last}"
    return (
        f"All weights are zero or NaN at {what}, counted from 0: no particle that was left "
        "there could have given the data."
    )


@remembering
def _finish(intake: Intake, cloud: Cloud) -> Cloud:
    """Take in what rows are left, of a run that ended early, by importance sampling."""
    points: Particles = cloud.particles.points
    _, total = jax.vmap(intake.log_terms(rows_so_far(intake.target)))(points.x)
    rest = jnp.where(cloud.control.missing, total - points.log_tilt, 0.0)
    rest = jnp.where(jnp.isfinite(rest), rest, -jnp.inf)
    log_tilt = jnp.where(cloud.control.missing, total, points.log_tilt)
    return eqx.tree_at(
        lambda c: c.particles.points.log_tilt, weigh_at_last(cloud, rest), log_tilt
    )


def intake_history(trace: Trace) -> ParticleHistory:
    """Turn statistics by step into those by step that took rows in, and those by move."""
    if not (stats := recorded(trace)):
        return ParticleHistory()
    took = np.diff(stats["rows"], prepend=0) > 0
    moved = stats["num_moves"] > 0
    by_move = ("acceptance_rate", "num_moves", "num_evaluations", "growth", "scale")
    return ParticleHistory(
        **{n: value[moved if n in by_move else took] for n, value in stats.items()}
    )
