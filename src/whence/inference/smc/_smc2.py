"""SMC squared: particles of parameters, each with a particle filter of its own.

It is `DataTemperedSMC` with the likelihood of a datum estimated by the filter of each particle,
and with moves of parameters by particle marginal Metropolis-Hastings. For any number of
particles in the filters, parameters are weighted right.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from ...core._batches import in_batches
from ...core._cache import compiled, remembering
from ...core._convert import number, whole
from ...core._engine import Sample, Schedule, Trace
from ...core._feynman_kac import AbstractFeynmanKac, AbstractSequenceTarget, sequence_of
from ...core._flat import flat_view
from ...core._key import seeded
from ...core._require import check_positions
from ...core._results import InferenceError
from ...core._target import AbstractTarget, SamplesPrior
from ...core._types import PRNGKey, Scalar
from ._data_tempered import (
    AbstractAlongData,
    Taken,
    intake_history,
    nothing_taken,
    take_in,
    taken_explained,
)
from ._driver import Cloud, start
from ._filter import ParticleFilter, begin, filter_field, log_evidence_until, move_on
from ._metric import ParticleCovariance
from ._moves import GAIN, MoveStats, acceptance_probability, no_moves
from ._particle_mh import joined, visit
from ._path import PriorPath
from ._record import only_cloud, resampling_field, weighted_sample
from ._resampling import AbstractResampling
from ._weights import wide_dtype

_ACCEPTANCE = 0.2  # what the scale of the random walk is tuned to: low, the density is noisy


class Filters(eqx.Module):
    """Particles of parameters."""

    x: Float[Array, "particle dim"]  # flat positions
    log_prior: Float[Array, " particle"]  # in nats
    clouds: Cloud  # the filter of each, a `Cloud` with a leading axis `particle`
    gain: Float[Array, " particle"]  # estimated log density of the datum that comes in, in nats


class Nested(AbstractFeynmanKac):
    """The Feynman-Kac model of one run."""

    sequence: AbstractSequenceTarget
    settings: ParticleFilter
    have: Int[Array, ""]  # data that there are
    num: int
    threshold: float
    moves: int

    def initial(self, *, key: PRNGKey) -> tuple[Filters, Taken]:
        key_draw, key_filter = jr.split(key)
        x, _ = PriorPath().draw(self.sequence, self.num, key=key_draw)
        clouds = self._each(self._begin, x, key_filter)
        gain = _finite(_totals(clouds))
        control = nothing_taken(2.38 / x.shape[1] ** 0.5)
        return Filters(x, jax.vmap(self._log_prior)(x), clouds, gain), control

    def mutate(
        self,
        particles: Filters,
        log_weights: Float[Array, " particle"],
        control: Taken,
        *,
        key: PRNGKey,
    ) -> tuple[Filters, Taken]:
        key_move, key_filter = jr.split(key)
        stay = lambda: (particles, control.log_scale, no_moves())
        move = lambda: self._moved(particles, log_weights, control, key_move)
        particles, log_scale, stats = jax.lax.cond(control.uneven, move, stay)

        def next_datum():
            clouds = self._each(
                lambda draw, key, cloud: self._next(draw, cloud, control.rows, key),
                particles.x,
                key_filter,
                particles.clouds,
            )
            gain = _totals(clouds) - _totals(particles.clouds)
            return Filters(particles.x, particles.log_prior, clouds, _finite(gain))

        # The first datum is in already; after the last there is none.
        comes = (control.rows > 0) & (control.rows < self.have)
        particles = jax.lax.cond(comes, next_datum, lambda: particles)
        return particles, control._replace(log_scale=log_scale, moves=stats)

    def log_potential(self, particles, log_weights, control):
        return take_in(
            particles.gain, log_weights, control, self.have, rows=1, threshold=self.threshold
        )

    def _each(self, function: Any, x: Any, key: PRNGKey, *rest: Any) -> Any:
        keys = jax.vmap(lambda i: jr.fold_in(key, i))(jnp.arange(len(x), dtype=jnp.uint32))
        one = lambda x, key, *rest: function(self._draw(x), key, *rest)
        return jax.vmap(one)(x, keys, *rest)

    def _draw(self, x):
        return self.sequence.constrain(flat_view(self.sequence)[1](x))

    def _log_prior(self, x) -> Scalar:
        return self.sequence.log_prior(flat_view(self.sequence)[1](x)).astype(wide_dtype())

    def _begin(self, draw, key) -> Cloud:
        datum = self.sequence.datum(jnp.asarray(0, jnp.int32))
        return begin(self.settings, self.sequence, draw, datum, key=key)

    def _next(self, draw, cloud, time, key) -> Cloud:
        datum = self.sequence.datum(time)
        return move_on(self.settings, self.sequence, draw, cloud, time, datum, key=key)[0]

    def _moved(
        self, particles: Filters, log_weights: Array, control: Taken, key: PRNGKey
    ) -> tuple[Filters, Scalar, MoveStats]:
        """Move parameters under the posterior of the data so far, each with a new filter."""
        factor = ParticleCovariance().factor(particles.x, log_weights)

        def move(i, carry):
            particles, log_scale, total = carry
            key_jump, key_filter, key_accept = jr.split(jr.fold_in(key, i), 3)
            x, scale = particles.x, jnp.exp(log_scale).astype(particles.x.dtype)
            x = x + scale * factor.colour(jr.normal(key_jump, x.shape, x.dtype))
            log_prior = jax.vmap(self._log_prior)(x)
            run = lambda draw, key: log_evidence_until(
                self.settings, self.sequence, draw, control.rows, key=key
            )
            clouds = self._each(run, x, key_filter)
            proposed = Filters(x, log_prior, clouds, particles.gain)
            chance = acceptance_probability(_log_density(proposed) - _log_density(particles))
            accept = jr.uniform(key_accept, chance.shape, chance.dtype) < chance
            keep = lambda new, old: jnp.where(
                accept.reshape(-1, *[1] * (new.ndim - 1)), new, old
            )
            rate = jnp.sum(jnp.exp(log_weights) * chance)
            moved = jax.tree.map(keep, proposed, particles)
            return moved, log_scale + GAIN * (rate - _ACCEPTANCE), total + rate

        zero = jnp.zeros((), wide_dtype())
        particles, log_scale, total = jax.lax.fori_loop(
            0, self.moves, move, (particles, control.log_scale, zero)
        )
        count = jnp.asarray(self.moves, jnp.int32)
        return particles, log_scale, MoveStats(total / self.moves, count, count, zero)


def _log_density(particles: Filters) -> Any:
    return particles.log_prior + _totals(particles.clouds)


def _totals(clouds: Cloud) -> Array:
    """Return the log evidence of each of many clouds."""
    return jax.vmap(lambda cloud: cloud.log_evidence.value)(clouds)


def _finite(gain: Array) -> Array:
    return jnp.where(jnp.isfinite(gain), gain, -jnp.inf)


class SMC2(AbstractAlongData):
    """SMC squared on a state-space model: parameters, states and evidence, datum by datum.

    Parameters are drawn from the prior and weighted by one datum after the other, whose
    likelihood a particle filter of each parameter estimates. When weights have grown uneven,
    parameters are resampled and moved by particle marginal Metropolis-Hastings, which runs
    new filters over the data so far. The draws are weighted; the density of every datum given
    those before (`record.log_evidence_increment`) is a by-product. Paths of states in the
    posterior come from a filter of each parameter at the end, with an error of order
    1 / particles.

    Online, `state = engine.start(target, key=key)` takes in the data of the target, and
    `state = engine.update(state, y_t)` one datum more.

    Attributes:
        parameters: Number of particles of parameters, at least 2.
        particles: Number of particles of each filter.
        moves: Moves of every parameter after resampling.
        threshold: Resample and move when the effective sample size is at most this fraction
            of the parameters.
        resampling: Of parameters: as for `ParticleFilter`.
        filter: How to filter, a `ParticleFilter`, in place of `particles`.

    References:
        Chopin, Jacob and Papaspiliopoulos (2013), doi:10.1111/j.1467-9868.2012.01046.x.
    """

    parameters: int = eqx.field(default=500, converter=whole("parameters", least=2))
    particles: int = eqx.field(default=200, converter=whole("particles", least=2))
    moves: int = eqx.field(default=3, converter=whole("moves", least=1))
    threshold: float = eqx.field(default=0.5, converter=number("threshold", least=0, most=1))
    resampling: str | AbstractResampling = resampling_field()
    filter: ParticleFilter | None = filter_field()
    max_steps: int = eqx.field(default=100_000, converter=whole("max_steps", least=2))

    @property
    def schedule(self) -> Schedule:
        return Schedule(1, 0, self.max_steps, ensemble=("particle", self.parameters))

    @property
    def settings(self) -> ParticleFilter:
        """The filter of each parameter."""
        return ParticleFilter(self.particles) if self.filter is None else self.filter

    def validate(self, target: AbstractTarget) -> None:
        sequence = sequence_of(target)
        check_positions(sequence, self.name)
        if not isinstance(sequence, SamplesPrior):
            raise ValueError(
                f"SMC2 needs a target whose prior can be drawn from; {type(sequence).__name__} "
                "has no `sample_prior_position`. Use ParticleMH."
            )
        jax.eval_shape(lambda key: sequence.sample_prior_position(key=key), jr.key(0))
        self.settings.validate(sequence)
        if sequence.num_times + 1 > self.max_steps:
            raise ValueError(
                f"`max_steps` must be at least {sequence.num_times + 1} for "
                f"{sequence.num_times} data; got {self.max_steps}."
            )

    def model(self, target: AbstractTarget) -> Nested:
        """Return the Feynman-Kac model that is run."""
        sequence = sequence_of(target)
        return self.on(sequence, jnp.asarray(sequence.num_times, jnp.int32))

    def on(self, sequence: AbstractSequenceTarget, have: Int[Array, ""]) -> Nested:
        """Return the model on the first `have` data of a sequence."""
        return Nested(
            sequence, self.settings, have, self.parameters, self.threshold, self.moves
        )

    @seeded
    def start(self, target: AbstractTarget, *, key: PRNGKey) -> "Learning":
        """Return the state of an online run that has taken in the data of a target."""
        self.validate(target)
        sequence = sequence_of(target)
        times = jnp.arange(sequence.num_times, dtype=jnp.int32)
        sequence = sequence.with_data(jax.vmap(sequence.datum)(times))
        have = jnp.asarray(len(times), jnp.int32)
        arguments = self, sequence, have, key
        cloud = compiled(_first_cloud, *arguments).call(*arguments)
        return _caught_up(Learning(self, sequence, have, cloud, key))

    def update(self, state: "Learning", y: Any, inputs: Any = None) -> "Learning":
        """Return the state of an online run after one datum more.

        Its time may be long when parameters move, since they see all data again.
        """
        if not isinstance(state, Learning):
            raise ValueError(f"`state` must come from `start`; got {type(state).__name__}.")
        sequence, have = state.sequence, int(state.have)
        datum = sequence.as_datum(y, inputs)
        times = jnp.arange(sequence.num_times, dtype=jnp.int32)
        data = jax.vmap(sequence.datum)(times)
        if have == sequence.num_times:  # room for as many again: programs are of few lengths
            data = jax.tree.map(lambda v: jnp.concatenate([v, v]), data)
        data = jax.tree.map(lambda v, new: v.at[have].set(new), data, datum)
        grown = state.sequence.with_data(data)
        return _caught_up(
            Learning(self, grown, jnp.asarray(have + 1, jnp.int32), state.cloud, state.key)
        )

    def explain(self, target: AbstractTarget, state: Cloud) -> str:
        """Return which datum no parameters could have given."""
        return taken_explained(only_cloud(state).control, "time")

    def posterior(
        self, target: AbstractTarget, state: Cloud, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        cloud, sequence = only_cloud(state), sequence_of(target)
        paths = _paths(sequence, self.settings, cloud.particles.x, key)
        positions, lp = joined(target, (cloud.particles.x[None], paths))
        stats = {"lp": lp} if bool(jnp.all(jnp.isfinite(lp))) else {}
        return weighted_sample(cloud, positions, stats, intake_history(trace))


class Learning(eqx.Module):
    """Where an online run stands."""

    engine: SMC2  # the engine
    sequence: AbstractSequenceTarget  # the data so far, and room for more
    have: Int[Array, ""]  # number of data so far
    cloud: Cloud  # parameters with their filters
    key: PRNGKey  # of the whole run

    @property
    def draws(self) -> Any:
        """Parameters, as a model whose leaves have a leading axis `particle`."""
        unflatten = flat_view(self.sequence)[1]
        one = lambda x: self.sequence.constrain(unflatten(x))
        return jax.vmap(one)(self.cloud.particles.x)

    @property
    def log_weights(self) -> Float[Array, " particle"]:
        """Of the draws, normalised."""
        return self.cloud.log_weights

    @property
    def log_evidence(self) -> float:
        """Log density of the data so far, in nats."""
        return float(self.cloud.log_evidence.value)


def _first_cloud(engine: SMC2, sequence: Any, have: Array, key: PRNGKey) -> Cloud:
    return start(engine.on(sequence, have), key=key)


def _caught_up(state: Learning) -> Learning:
    """Return the state with all data taken in that there are."""
    cloud = compiled(_catch_up, state).call(state)
    if bool(cloud.control.nonfinite):
        said = taken_explained(cloud.control, "time")
        raise InferenceError(f"{said} Use more particles, or `proposal='guided'`.")
    return eqx.tree_at(lambda s: s.cloud, state, cloud)


def _catch_up(state: Learning) -> Cloud:
    model = state.engine.on(state.sequence, state.have)

    def behind(cloud):
        return (cloud.control.rows < state.have) & ~cloud.control.nonfinite

    def take(cloud):
        key = jr.fold_in(state.key, cloud.control.rows)
        return state.engine.take(model, cloud, key=key)[0]

    return jax.lax.while_loop(behind, take, state.cloud)


@remembering
def _paths(sequence: AbstractSequenceTarget, settings: ParticleFilter, x: Array, key: PRNGKey):
    """Return a path for each of many parameters, `(1, particle, time, ...)`."""
    one = lambda pair: visit(sequence, settings, *pair).path
    found = in_batches(one, (x, jr.split(key, len(x))), 50)
    return jax.tree.map(lambda v: v[None], found)
