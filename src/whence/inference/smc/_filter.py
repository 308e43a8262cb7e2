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
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...core._feynman_kac import (
    AbstractFeynmanKac,
    AbstractSequenceTarget,
    GuidedSequence,
    SequenceAt,
    sequence_of,
)
from ...core._types import Draw, PRNGKey, Scalar
from ._driver import Cloud, Resampler, advance, start, weigh
from ._weights import effective_sample_size, wide_dtype


class Walkers(eqx.Module):
    """States with what their weights are to grow by.

    Attributes:
        state: A pytree whose leaves have a leading axis `particle`.
        ahead: Log of what was guessed of the datum to come, in nats, `(particle,)`.
        gain: Log weight increment, in nats, `(particle,)`.
    """

    state: PyTree
    ahead: Float[Array, "..."]
    gain: Float[Array, "..."]


class AbstractFilter(eqx.Module):
    """How hidden states are followed with particles; see `ParticleFilter`."""

    particles: eqx.AbstractVar[int]
    proposal: eqx.AbstractVar[str]
    lookahead: eqx.AbstractVar[bool]
    resampling: eqx.AbstractVar[Any]
    threshold: eqx.AbstractVar[float]

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


class History(NamedTuple):
    """What a filter saw, by time.

    Attributes:
        state: `(time, particle, ...)`.
        log_weights: Normalised, `(time, particle)`.
        ancestors: Of each particle among those of the time before, `(time, particle)`.
        ess: Effective sample size, `(time,)`.
        largest_weight: `(time,)`.
        resampled: `(time,)`.
        founders: Particles of time 0 with descendants, `(time,)`.
        log_evidence: Log density of each datum given those before, in nats, `(time,)`.
    """

    state: PyTree
    log_weights: Float[Array, "time particle"]
    ancestors: Int[Array, "time particle"]
    ess: Float[Array, " time"]
    largest_weight: Float[Array, " time"]
    resampled: Bool[Array, " time"]
    founders: Int[Array, " time"]
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
        zeros = jnp.zeros((self.num,), wide_dtype())
        return self._each(None, zeros, key), None

    def mutate(self, particles, log_weights, control, *, key):
        return self._each(particles.state, particles.ahead, key), control

    def log_potential(self, particles, log_weights, control):
        gain = particles.gain
        return jnp.where(jnp.isnan(gain), -jnp.inf, gain), control

    def _each(self, states, ahead, key) -> Walkers:
        sequence, draw, time, datum = self.sequence, self.draw, self.time, self.datum

        def one(number, state, ahead):
            own = jr.fold_in(key, number)
            extra = jnp.zeros((), wide_dtype())
            if self.guided:
                new, ratio = sequence.propose(draw, state, time, datum, key=own)  # pyright: ignore
                extra = ratio.astype(extra.dtype)
            elif state is None:
                new = sequence.initial(draw, key=own)
            else:
                new = sequence.transition(draw, state, time, datum, key=own)
            seen = sequence.log_potential(draw, new, time, datum)
            return Walkers(new, jnp.zeros_like(ahead), seen.astype(extra.dtype) + extra - ahead)

        return jax.vmap(one)(jnp.arange(self.num, dtype=jnp.uint32), states, ahead)


def _moment(settings, sequence, draw, time, datum) -> _Moment:
    guided = settings.proposal == "guided"
    return _Moment(sequence, draw, time, datum, settings.particles, guided)


def begin(
    settings: AbstractFilter,
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
    return weigh(cloud, gain)[0]


def move_on(
    settings: AbstractFilter,
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
        cloud = eqx.tree_at(lambda c: c.particles.ahead, weigh(cloud, ahead)[0], ahead)
    model = _moment(settings, sequence, draw, time, datum)
    resampler = Resampler(settings.resampling, settings.threshold)
    cloud, did = advance(model, cloud, resampler, key=jr.fold_in(key, time))
    return cloud, did._replace(log_evidence_increment=cloud.log_evidence.value - before)


def run_filter(
    settings: AbstractFilter, sequence: AbstractSequenceTarget, draw: Draw, *, key: PRNGKey
) -> tuple[Cloud, History]:
    """Run a filter over all data; traced. What is not used of the history costs nothing.

    Args:
        settings: The filter.
        sequence: The sequence.
        draw: Its parameters.
        key: Of the whole run.
    """
    cloud = begin(settings, sequence, draw, sequence.datum(jnp.asarray(0, jnp.int32)), key=key)

    def seen(cloud, ancestors, ess, largest, resampled, increment) -> History:
        state, logs = cloud.particles.state, cloud.log_weights
        return History(
            state, logs, ancestors, ess, largest, resampled, cloud.num_founders, increment
        )

    def step(cloud, time):
        datum = sequence.datum(time)
        cloud, did = move_on(settings, sequence, draw, cloud, time, datum, key=key)
        return cloud, seen(
            cloud,
            did.ancestors,
            did.ess,
            did.largest_weight,
            did.resampled,
            did.log_evidence_increment,
        )

    first = seen(
        cloud,
        jnp.arange(settings.particles, dtype=jnp.int32),
        effective_sample_size(cloud.log_weights),
        jnp.exp(jnp.max(cloud.log_weights)),
        jnp.asarray(False),
        cloud.log_evidence.value,
    )
    times = jnp.arange(1, sequence.num_times, dtype=jnp.int32)
    cloud, rest = jax.lax.scan(step, cloud, times)
    return cloud, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def log_evidence_until(
    settings: AbstractFilter,
    sequence: AbstractSequenceTarget,
    draw: Draw,
    times: Int[Array, ""],
    *,
    key: PRNGKey,
) -> Cloud:
    """Return the cloud after the first `times` data, a number that may be traced.

    Args:
        settings: The filter.
        sequence: The sequence.
        draw: Its parameters.
        times: At least 1.
        key: Of the whole run.
    """
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
