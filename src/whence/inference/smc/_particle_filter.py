"""`ParticleFilter`: how hidden states are followed where there is no closed form."""

from typing import Any

import equinox as eqx

from ...core._convert import flag, number, one_of, whole
from ...core._key import seeded
from ...core._types import PRNGKey
from ._filter import AbstractFilter
from ._online import OnlineState, start_online, update_online
from ._record import resampling_field
from ._resampling import AbstractResampling


class ParticleFilter(AbstractFilter):
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

    @seeded
    def start(self, target: Any, *, key: PRNGKey) -> OnlineState:
        """Return the state of an online filter that has taken in the data of a target.

        Args:
            target: A state-space target without unknown parameters, or `target.at(posterior)`.
            key: A typed key.
        """
        return start_online(self, target, key)

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
        return update_online(state, y, inputs, time)
