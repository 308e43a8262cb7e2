"""Particle filters: the driver along a sequence of hidden states.

With proposals that know the datum, a particle's weight grows by
`transition(x) exp(log_potential(x)) / proposal(x)`. With a look-ahead (the auxiliary filter)
particles are weighted by a guess of what the next datum will say before they are resampled,
and what was guessed is taken off afterwards: any guess leaves the evidence unbiased.

References:
    Gordon, Salmond and Smith (1993), doi:10.1049/ip-f-2.1993.0015.
    Pitt and Shephard (1999), doi:10.1080/01621459.1999.10474153.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...core._cache import compiled
from ...core._convert import flag, number, one_of, part, whole
from ...core._feynman_kac import (
    AbstractFeynmanKac,
    AbstractSequenceTarget,
    GuidedSequence,
    SequenceAt,
    sequence_of,
)
from ...core._key import as_key, seeded
from ...core._types import Draw, PRNGKey, Scalar
from ._driver import Advance, Cloud, Resampler, advance, start, weigh
from ._record import resampling_field
from ._resampling import AbstractResampling
from ._states import States, moments, require_alive, warn_if_alone
from ._weights import effective_sample_size, wide_dtype


class Walkers(eqx.Module):
    """States with what their weights are to grow by."""

    state: PyTree  # a pytree whose leaves have a leading axis `particle`
    # Log of what was guessed of the datum to come, in nats, `(particle,)`, if anything was.
    ahead: Float[Array, "..."] | None = None
    # Log weight increment, in nats, `(particle,)`; None once the weights have it.
    gain: Float[Array, "..."] | None = None


class History(NamedTuple):
    """What a filter saw, by time."""

    state: PyTree  # `(time, particle, ...)`
    log_weights: Float[Array, "time particle"]  # normalised, `(time, particle)`
    # Of each particle among those of the time before, `(time, particle)`.
    ancestors: Int[Array, "time particle"]
    ess: Float[Array, " time"]  # effective sample size, `(time,)`
    largest_weight: Float[Array, " time"]  # `(time,)`
    resampled: Bool[Array, " time"]  # `(time,)`
    founders: Int[Array, " time"]  # particles of time 0 with descendants, `(time,)`
    # Log density of each datum given those before, in nats, `(time,)`.
    log_evidence: Float[Array, " time"]


class _Moment(AbstractFeynmanKac):
    """The Feynman-Kac model of one time; each particle has a key of its own number."""

    sequence: AbstractSequenceTarget
    draw: Draw
    time: Int[Array, ""]
    datum: PyTree
    num: int
    guided: bool

    def initial(self, *, key):
        return self._each(None, None, key), None

    def mutate(self, particles, log_weights, control, *, key):
        return self._each(particles.state, particles.ahead, key), control

    def log_potential(self, particles, log_weights, control):
        gain = particles.gain
        return jnp.where(jnp.isnan(gain), -jnp.inf, gain), control

    def _each(self, states, ahead, key) -> Walkers:
        sequence, draw, time, datum = self.sequence, self.draw, self.time, self.datum

        def one(number, state, ahead):
            own = _key_of(key, number)
            extra = jnp.zeros((), wide_dtype())
            if self.guided:
                new, ratio = sequence.propose(draw, state, time, datum, key=own)  # pyright: ignore
                extra = ratio.astype(extra.dtype)
            elif state is None:
                new = sequence.initial(draw, key=own)
            else:
                new = sequence.transition(draw, state, time, datum, key=own)
            extra = extra if ahead is None else extra - ahead
            seen = sequence.log_potential(draw, new, time, datum)
            return Walkers(new, None, seen.astype(extra.dtype) + extra)

        return jax.vmap(one)(jnp.arange(self.num, dtype=jnp.uint32), states, ahead)


def _key_of(key: PRNGKey, number: Array) -> PRNGKey:
    """Return the key of one particle: that of all with another word.

    Streams of neighbouring keys of Threefry are as independent as those of neighbouring
    counters (Salmon and others 2011, doi:10.1145/2063384.2063405); `fold_in` would hash again.
    """
    if str(jr.key_impl(key)) != "threefry2x32":
        return jr.fold_in(key, number)
    return jr.wrap_key_data(jr.key_data(key) ^ jnp.stack([jnp.zeros_like(number), number]))


def _moment(settings, sequence, draw, time, datum) -> _Moment:
    guided = settings.proposal == "guided"
    return _Moment(sequence, draw, time, datum, settings.particles, guided)


def begin(
    settings: "ParticleFilter",
    sequence: AbstractSequenceTarget,
    draw: Draw,
    datum: PyTree,
    *,
    key: PRNGKey,
) -> Cloud:
    """Return the cloud at time 0, weighted by the first datum."""
    time = jnp.asarray(0, jnp.int32)
    model = _moment(settings, sequence, draw, time, datum)
    cloud = start(model, key=jr.fold_in(key, 0))
    gain, _ = model.log_potential(cloud.particles, cloud.log_weights, None)
    return _bare(weigh(cloud, gain)[0])


def _bare(cloud: Cloud) -> Cloud:
    """Return the cloud with nothing but states, so that no more is copied when resampled."""
    return eqx.tree_at(lambda c: c.particles, cloud, Walkers(cloud.particles.state))


def move_on(
    settings: "ParticleFilter",
    sequence: AbstractSequenceTarget,
    draw: Draw,
    cloud: Cloud,
    time: Int[Array, ""],
    datum: PyTree,
    *,
    key: PRNGKey,
) -> tuple[Cloud, Any]:
    """Return the cloud at `time`, given that of the time before, and what the step did."""
    before = cloud.log_evidence.value
    if settings.lookahead:
        guess = lambda state: sequence.log_lookahead(draw, state, time, datum)  # pyright: ignore
        ahead = jax.vmap(guess)(cloud.particles.state).astype(wide_dtype())
        ahead = jnp.where(jnp.isfinite(ahead), ahead, jnp.zeros_like(ahead))
        guessed = Walkers(cloud.particles.state, ahead)
        cloud = eqx.tree_at(lambda c: c.particles, weigh(cloud, ahead)[0], guessed)
    model = _moment(settings, sequence, draw, time, datum)
    resampler = Resampler(settings.resampling, settings.threshold)
    cloud, did = advance(model, cloud, resampler, key=jr.fold_in(key, time))
    return _bare(cloud), did._replace(log_evidence_increment=cloud.log_evidence.value - before)


def run_filter(
    settings: "ParticleFilter", sequence: AbstractSequenceTarget, draw: Draw, *, key: PRNGKey
) -> tuple[Cloud, History]:
    """Run a filter over all data; traced. What is not used of the history costs nothing."""
    cloud = begin(settings, sequence, draw, sequence.datum(jnp.asarray(0, jnp.int32)), key=key)

    def seen(cloud: Cloud, did: Advance) -> History:
        return History(
            cloud.particles.state,
            cloud.log_weights,
            did.ancestors,
            did.ess,
            did.largest_weight,
            did.resampled,
            cloud.num_founders,
            did.log_evidence_increment,
        )

    def step(cloud, time):
        datum = sequence.datum(time)
        cloud, did = move_on(settings, sequence, draw, cloud, time, datum, key=key)
        return cloud, seen(cloud, did)

    itself = jnp.arange(settings.particles, dtype=jnp.int32)
    ess, largest = effective_sample_size(cloud.log_weights), jnp.exp(jnp.max(cloud.log_weights))
    did = Advance(jnp.asarray(False), itself, ess, largest, cloud.log_evidence.value)
    first = seen(cloud, did)
    times = jnp.arange(1, sequence.num_times, dtype=jnp.int32)
    cloud, rest = jax.lax.scan(step, cloud, times)
    return cloud, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def log_evidence_until(
    settings: "ParticleFilter",
    sequence: AbstractSequenceTarget,
    draw: Draw,
    times: Int[Array, ""],
    *,
    key: PRNGKey,
) -> Cloud:
    """Return the cloud after the first `times` data, a number that may be traced."""
    cloud = begin(settings, sequence, draw, sequence.datum(jnp.asarray(0, jnp.int32)), key=key)

    def step(time, cloud):
        datum = sequence.datum(time)
        return move_on(settings, sequence, draw, cloud, time, datum, key=key)[0]

    return jax.lax.fori_loop(jnp.asarray(1, jnp.int32), times, step, cloud)


def at_draws(target: Any) -> SequenceAt:
    """Return a sequence at draws of its parameters, for targets that leave none unknown.

    Raises:
        ValueError: If the target is no sequence, or has unknown parameters.
    """
    if isinstance(target, SequenceAt):
        return target
    sequence = sequence_of(target)
    shapes = jax.eval_shape(lambda key: sequence.init(key=key), jr.key(0))
    unknown = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    if unknown:
        raise ValueError(
            f"The target has {unknown} unknown parameters: give their values, as "
            "`target.at(posterior)` or `target.at(draw)`, or run `ParticleMH` or `SMC2`."
        )
    none = jax.tree.map(lambda v: v[None], sequence.init(key=jr.key(0)))
    return SequenceAt(sequence, none, jnp.zeros(1))


def log_evidence_error(cloud: Cloud) -> Scalar:
    """Return the standard error of the log evidence, in nats."""
    return jnp.sqrt(cloud.evidence_variance)


class OnlineState(eqx.Module):
    """Where an online filter stands.

    Attributes:
        settings: The filter.
        at: The sequence and draws of its parameters. The weights of the draws follow the data
            that came since: draws of a posterior stay draws of the posterior.
        clouds: Particles for each draw.
        time: Number of the last datum.
        key: Of the whole run.
    """

    settings: "ParticleFilter"
    at: SequenceAt
    clouds: Cloud
    time: Array
    key: PRNGKey

    @property
    def states(self) -> States:
        """The hidden state now: as `whence.filter` returns it, with one time."""
        points, logs = self.clouds.particles.state, self.clouds.log_weights
        mean, variance = jax.vmap(lambda v, w: moments(v[None], w[None]))(points, logs)
        error = jax.vmap(log_evidence_error)(self.clouds)
        return States(
            mean,
            variance,
            jax.tree.map(lambda v: v[:, None], points),
            logs[:, None],
            self.at.log_weights,
            jax.vmap(lambda cloud: cloud.log_evidence.value)(self.clouds),
            error,
        )


def filter_field() -> Any:
    """Return the field of an engine for how it filters, in place of `particles`."""
    convert = lambda v: v if v is None else part("filter", ParticleFilter)(v)
    return eqx.field(default=None, converter=convert)


def _first(settings, at, key):
    def one(pair):
        draw = at.sequence.constrain(pair[0])
        cloud, history = run_filter(settings, at.sequence, draw, key=pair[1])
        return cloud, history.log_evidence, history.ess

    return jax.lax.map(one, (at.positions, jr.split(key, len(at.log_weights))))


def _next(state: OnlineState, datum: Any) -> tuple[Cloud, Array, Array]:
    settings, at, time = state.settings, state.at, state.time + 1

    def one(triple):
        position, cloud, key = triple
        draw = at.sequence.constrain(position)
        cloud, did = move_on(settings, at.sequence, draw, cloud, time, datum, key=key)
        return cloud, did.log_evidence_increment, did.ess

    keys = jr.split(state.key, len(at.log_weights))
    return jax.lax.map(one, (at.positions, state.clouds, keys))


class ParticleFilter(eqx.Module):
    """A particle filter: how hidden states are followed where there is no closed form.

    `whence.filter` and `whence.smooth` run it on all data of a target, `ParticleMH` and `SMC2`
    inside of engines. Online, `state = filter.start(target, key=key)` takes in the data of the
    target and `state = filter.update(state, y_t)` one datum more at a time.

    Attributes:
        particles: Number of particles, at least 2.
        proposal: `"bootstrap"`: from the transition, which knows nothing of the datum.
            `"guided"`: from `proposal` of the model, or, if it has none and the transition is
            normal, near the locally optimal law (exactly it, if the emission is normal with a
            mean affine in the state).
        lookahead: Whether to weight particles by a guess of the next datum's density before
            they are resampled (the auxiliary particle filter); for normal transitions.
        resampling: `"systematic"`, `"stratified"`, `"residual"`, `"multinomial"`, `"ssp"` or
            `"killing"`, or an `AbstractResampling`.
        threshold: Resample when the effective sample size is at most this fraction of the
            particles: 0 is importance sampling, 1 resamples at every step.

    References:
        Gordon, Salmond and Smith (1993), doi:10.1049/ip-f-2.1993.0015.
        Doucet, Godsill and Andrieu (2000), doi:10.1023/A:1008935410038 [proposal: guided].
        Pitt and Shephard (1999), doi:10.1080/01621459.1999.10474153 [lookahead: True].
    """

    particles: int = eqx.field(default=1000, converter=whole("particles", least=2))
    proposal: str = eqx.field(
        default="bootstrap", converter=one_of("proposal", ("bootstrap", "guided"))
    )
    lookahead: bool = eqx.field(default=False, converter=flag("lookahead"))
    resampling: str | AbstractResampling = resampling_field()
    threshold: float = eqx.field(default=0.5, converter=number("threshold", least=0, most=1))

    def validate(self, sequence: AbstractSequenceTarget) -> None:
        """Raise `ValueError` if this cannot run on a sequence."""
        if self.proposal == "bootstrap" and not self.lookahead:
            return
        name = type(sequence).__name__
        if not isinstance(sequence, GuidedSequence):
            raise ValueError(
                "`proposal` must be 'bootstrap' and `lookahead` False for "
                f"{name}, which has no `propose` and `log_lookahead`; got {self.proposal!r}, "
                f"{self.lookahead}."
            )

        def try_it(key):
            draw = sequence.constrain(sequence.init(key=key))
            time = jnp.asarray(0, jnp.int32)
            datum = sequence.datum(time)
            state = sequence.initial(draw, key=key)
            if self.lookahead:
                sequence.log_lookahead(draw, state, time, datum)
            return sequence.propose(draw, state, time, datum, key=key)

        jax.eval_shape(try_it, jr.key(0))  # says what is missing

    @seeded
    def start(self, target: Any, *, key: PRNGKey) -> OnlineState:
        """Return the state of an online filter that has taken in the data of a target."""
        key, at = as_key(key), at_draws(target)
        self.validate(at.sequence)
        clouds, increments, ess = compiled(_first, self, at, key).call(self, at, key)
        require_alive(increments, at.sequence)
        warn_if_alone(ess)
        return OnlineState(
            self, at, clouds, jnp.asarray(at.sequence.num_times - 1, jnp.int32), key
        )

    def update(
        self, state: Any, y: Any, inputs: Any = None, *, time: Any = None
    ) -> OnlineState:
        """Return the state of an online filter after one datum more.

        Args:
            state: From `start` or the last `update`.
            y: The datum; NaN where nothing was observed.
            inputs: Its inputs, if the model takes them.
            time: Number of its time, to be checked: it must follow the last.
        """
        if not isinstance(state, OnlineState):
            raise ValueError(
                f"`state` must come from `filter.start`; got {type(state).__name__}."
            )
        last = int(state.time)
        if time is not None and int(time) != last + 1:
            raise ValueError(
                f"`time` must be {last + 1}, the one after the last: a filter does not go back "
                f"in time, nor leap (a datum of NaN is one that is missing); got {time}."
            )
        datum = state.at.sequence.as_datum(y, inputs)
        clouds, increments, ess = compiled(_next, state, datum).call(state, datum)
        require_alive(np.asarray(increments)[:, None], state.at.sequence, last + 1)
        warn_if_alone(np.asarray(ess)[:, None], last + 1)
        at = state.at
        logs = at.log_weights + increments.astype(at.log_weights.dtype)
        at = SequenceAt(at.sequence, at.positions, logs - logsumexp(logs))
        return OnlineState(state.settings, at, clouds, state.time + 1, state.key)
