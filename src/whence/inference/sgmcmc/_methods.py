"""Stochastic-gradient samplers by name: configurations of one engine, and the engine itself.

See `AbstractSGMCMC` for the settings that they share.
"""

import dataclasses
from typing import Any

import equinox as eqx

from ...core._convert import flag, number, one_of, part, whole
from ._decay import AbstractDecay, Cyclical
from ._engine import AbstractSGMCMC, decay_field, optional_positive
from ._federated import FederatedGradient, as_probabilities, as_shards
from ._gradient import AbstractGradient, MinibatchGradient, batch_field, batching_field
from ._integrator import word_of
from ._parts import Parts
from ._structured import StructuredGradient, as_groups
from ._surrogate import SURROGATES


def as_integrator(value: Any) -> str:
    """Return `integrator` as it is, if it is a word or a name of one."""
    word_of(value)
    return value


def with_settings(kind: type[AbstractGradient], engine: Any) -> AbstractGradient:
    """Return a gradient whose settings are those of an engine by the same names."""
    own = [field.name for field in dataclasses.fields(kind) if field.init]
    return kind(**{name: getattr(engine, name) for name in own})


def integrator_field(default: str) -> Any:
    """Return the field `integrator`."""
    return eqx.field(default=default, converter=as_integrator)


class SGMCMC(AbstractSGMCMC):
    """Any stochastic-gradient MCMC: a gradient, an integrator, a preconditioner and a decay.

    Attributes:
        integrator: A word over `A` (drift), `B` (kick), `O` and `o` (friction, exact and by one
            Euler step) and `D` (thermostat), such as `"BAOA"`, `"BAOAB"`, `"OBABO"`, `"ABOBA"`,
            `"OABAO"`, `"OBA"` or `"BADODAB"`; or `"SGLD"`, `"SGHMC"` or `"SGNHT"`.
        gradient: `MinibatchGradient`, `ControlVariate`, `FederatedGradient`,
            `StructuredGradient`, or one of your own.
        decay: How the step size changes; also a schedule of optax. (`schedule` is what the
            loop of every engine makes of `steps` and `warmup`.)
        friction: None finds one with the step size, or takes `0.1 / step_size`.
        subtract_noise: Whether the noise of the gradient, as the preconditioner measures it, is
            taken off the noise of friction; for independent batches, as in `SGNHT`.

    References:
        Leimkuhler and Matthews (2013), doi:10.1093/amrx/abs010.
        Franzese, Milios, Filippone and Michiardi (2022), "Revisiting the effects of
        stochasticity for Hamiltonian samplers", ICML.
    """

    integrator: str = integrator_field("BAOA")
    gradient: AbstractGradient = eqx.field(
        default=MinibatchGradient(), converter=part("gradient", AbstractGradient)
    )
    decay: AbstractDecay = decay_field()
    friction: float | None = optional_positive("friction")
    subtract_noise: bool = eqx.field(default=False, converter=flag("subtract_noise"))

    @property
    def parts(self) -> Parts:
        word, rest = word_of(self.integrator), (self.friction, self.subtract_noise)
        return Parts(word, self.gradient, self.scaling, self.decay, *rest)


class SGLD(AbstractSGMCMC):
    """Langevin dynamics with the gradient of a minibatch and no accept-reject step.

    An update is `x + h G g + sqrt(2 h G) noise`, with `g` an estimate of the gradient of
    the log density on all data. Its bias does not vanish at a fixed step size: in a
    direction of precision `a`, with gradient noise of variance `V` that is independent
    between updates, the stationary variance is `(1 + h V / 2) / (1 - h a / 2) / a`, and
    the chain is stable for `h < 2 / a`. Reshuffled batches have a smaller error than
    independent ones. R-hat and effective sample size do not see this bias; `diagnose` does,
    by the gradient at some of the draws (`record.inflation`, the variance in units of the
    target's), for a tenth of the work of the run.

    Attributes:
        batch_size: Rows of data per update; None for all, which needs no data target.
        batching: `"reshuffle"` (without replacement), `"symmetric"` or `"iid"`.
        decay: How the step size falls; also a schedule of optax.

    See `AbstractSGMCMC` for the settings that all engines of this kind have.

    References:
        Welling and Teh (2011), "Bayesian learning via stochastic gradient Langevin
        dynamics", ICML.
        Vollmer, Zygalakis and Teh (2016), "Exploration of the (non-)asymptotic bias and
        variance of stochastic gradient Langevin dynamics", JMLR 17(159).
    """

    batch_size: int | None = batch_field()
    batching: str = batching_field()
    decay: AbstractDecay = decay_field()

    @property
    def parts(self) -> Parts:
        gradient = MinibatchGradient(self.batch_size, self.batching)
        return Parts("E", gradient, self.scaling, self.decay)


class SGHMC(AbstractSGMCMC):
    """Hamiltonian dynamics with friction and the gradient of a minibatch: `SGMCMC("SGHMC")`.

    `q += h p`, then `p = (1 - friction h) p + h g + sqrt(2 friction h) noise`. In the notation
    of the reference's equation 15 the learning rate is `h ** 2` and alpha `friction * h`.
    With `preconditioner=ScaleAdapted()`, `subtract_noise=True` and `batching="iid"` it is the
    scale-adapted sampler of Springenberg et al. (2016), made for Bayesian neural networks.

    Attributes:
        batch_size: Rows of data per update; None for all.
        batching: `"reshuffle"`, `"symmetric"` or `"iid"`.
        decay: How the step size changes; also a schedule of optax.
        friction: None finds one with the step size, or takes `0.1 / step_size`.
        subtract_noise: As in `SGMCMC`.

    References:
        Chen, Fox and Guestrin (2014), "Stochastic gradient Hamiltonian Monte Carlo", ICML,
        arXiv:1402.4102.
    """

    batch_size: int | None = batch_field()
    batching: str = batching_field()
    decay: AbstractDecay = decay_field()
    friction: float | None = optional_positive("friction")
    subtract_noise: bool = eqx.field(default=False, converter=flag("subtract_noise"))

    @property
    def parts(self) -> Parts:
        gradient = MinibatchGradient(self.batch_size, self.batching)
        word, rest = word_of("SGHMC"), (self.friction, self.subtract_noise)
        return Parts(word, gradient, self.scaling, self.decay, *rest)


class SGNHT(AbstractSGMCMC):
    """Dynamics with friction that a thermostat adapts to the noise of the batches.

    The friction changes by `h friction^2 (mean(p^2) - temperature)`: it grows where the noise
    of the gradient heats the momenta, so that this need not be known. It is the rule of the
    first reference with time in units of one over the friction. One friction serves all
    coordinates: the noise should be alike in all, as a `preconditioner` can make it.

    The noise is taken to be independent between updates, so batches are drawn so. That of
    reshuffled batches cancels within an epoch: it heats the momenta and not the positions,
    which then come out too narrow.

    Attributes:
        batch_size: Rows of data per update; None for all.
        batching: `"iid"`, `"reshuffle"` or `"symmetric"`.
        decay: How the step size changes; also a schedule of optax.
        friction: To start from; None finds one with the step size, or takes `0.1 / step_size`.
        integrator: `"BADODAB"`, the second reference's; `"SGNHT"`, the first's, whose variances
            are too small by half of friction times step size.

    References:
        Ding, Fang, Babbush, Chen, Skeel and Neven (2014), "Bayesian sampling using stochastic
        gradient thermostats", NIPS, algorithm 2.
        Leimkuhler and Shang (2016), "Adaptive thermostats for noisy gradient systems",
        doi:10.1137/15M102318X.
    """

    batch_size: int | None = batch_field()
    batching: str = batching_field("iid")
    decay: AbstractDecay = decay_field()
    friction: float | None = optional_positive("friction")
    integrator: str = integrator_field("BADODAB")

    @property
    def parts(self) -> Parts:
        gradient, word = with_settings(MinibatchGradient, self), word_of(self.integrator)
        return Parts(word, gradient, self.scaling, self.decay, self.friction)


class CyclicalSGLD(AbstractSGMCMC):
    """Cycles of large steps that look for a mode, then small ones that sample it.

    `SGMCMC` with `decay=Cyclical(...)`. Draws are made in the second part of each cycle and are
    weighted by their step size. Within `warmup` are the first cycles, rounded up.

    Attributes:
        batch_size: Rows of data per update; None for all.
        batching: `"reshuffle"`, `"symmetric"` or `"iid"`.
        cycles: Of the run; each has `steps // cycles` updates.
        exploration: Share of a cycle without noise and draws.
        integrator: As in `SGMCMC`; `"SGHMC"` makes it cSGHMC.
        friction: As in `SGMCMC`.

    References:
        Zhang, Li, Zhang, Chen and Wilson (2020), "Cyclical stochastic gradient MCMC for
        Bayesian deep learning", ICLR, arXiv:1902.03932.
    """

    batch_size: int | None = batch_field()
    batching: str = batching_field()
    cycles: int = eqx.field(default=10, converter=whole("cycles", least=1))
    exploration: float = eqx.field(
        default=0.5, converter=number("exploration", least=0, below=1)
    )
    integrator: str = integrator_field("SGLD")
    friction: float | None = optional_positive("friction")

    def __check_init__(self):
        if self.steps < 2 * self.cycles:
            raise ValueError(
                "`cycles` must leave at least two updates to each; got "
                f"`cycles={self.cycles}`, `steps={self.steps}`."
            )

    @property
    def parts(self) -> Parts:
        gradient = MinibatchGradient(self.batch_size, self.batching)
        cycle = Cyclical(max(self.steps // self.cycles, 2), self.exploration)
        word = word_of(self.integrator)
        return Parts(word, gradient, self.scaling, cycle, self.friction)


class FederatedSGLD(AbstractSGMCMC):
    """Langevin dynamics that visit one shard of the data at a time, with conducive gradients.

    `SGMCMC("SGLD", gradient=FederatedGradient(...))`, which tells more of these settings.

    Attributes:
        shards: Number of shards of about equal size, a tuple of the rows of each, or
            `"processes"`: the rows of each process of `whence.distributed`, which stay there.
        batch_size: Rows per batch; None for as many as the smallest shard has.
        local_steps: Updates before another shard is drawn.
        probabilities: Of the shards; None for proportional to their rows.
        surrogate: `"laplace"`, `"local"`, or `"none"` for DSGLD.
        decay: How the step size changes; also a schedule of optax.
        integrator: As in `SGMCMC`.

    References:
        El Mekkaoui, Mesquita, Blomstedt and Kaski (2021), "Federated stochastic gradient
        Langevin dynamics", UAI, arXiv:2004.11231.
    """

    shards: int | str | tuple[int, ...] = eqx.field(default=2, converter=as_shards)
    batch_size: int | None = batch_field()
    local_steps: int = eqx.field(default=1, converter=whole("local_steps", least=1))
    probabilities: tuple[float, ...] | None = eqx.field(
        default=None, converter=as_probabilities
    )
    surrogate: str = eqx.field(default="laplace", converter=one_of("surrogate", SURROGATES))
    decay: AbstractDecay = decay_field()
    integrator: str = integrator_field("SGLD")

    @property
    def parts(self) -> Parts:
        gradient, word = with_settings(FederatedGradient, self), word_of(self.integrator)
        return Parts(word, gradient, self.scaling, self.decay)


class StructuredSGMCMC(AbstractSGMCMC):
    """The posterior as independent groups of latents, of any shape within a group.

    `SGMCMC` with `gradient=StructuredGradient(...)`, which tells more of these settings. What
    it samples is the best product over groups, not the posterior: correlations between groups
    are zero, and variances are those that go with it, too small for correlated latents.

    Attributes:
        batch_size: Rows of data per update; None for all.
        batching: `"reshuffle"`, `"symmetric"` or `"iid"`.
        groups: `"latents"`, `"coordinates"`, or a number of blocks of about equal size.
        keep: 0, or the probability of the dropout variant that a group is the present one.
        copies: Positions to average over, with `keep`.
        history: Past positions remembered.
        every: Updates between these.
        decay: How the step size changes; also a schedule of optax.
        integrator: As in `SGMCMC`.
        friction: As in `SGMCMC`.

    References:
        Alexos, Boyd and Mandt (2022), "Structured stochastic gradient MCMC", ICML,
        arXiv:2107.09028.
    """

    batch_size: int | None = batch_field()
    batching: str = batching_field()
    groups: int | str = eqx.field(default="latents", converter=as_groups)
    keep: float = eqx.field(default=0.0, converter=number("keep", least=0, most=1))
    copies: int = eqx.field(default=4, converter=whole("copies", least=1))
    history: int = eqx.field(default=100, converter=whole("history", least=2))
    every: int = eqx.field(default=10, converter=whole("every", least=1))
    decay: AbstractDecay = decay_field()
    integrator: str = integrator_field("SGLD")
    friction: float | None = optional_positive("friction")

    @property
    def parts(self) -> Parts:
        gradient, word = with_settings(StructuredGradient, self), word_of(self.integrator)
        return Parts(word, gradient, self.scaling, self.decay, self.friction)
