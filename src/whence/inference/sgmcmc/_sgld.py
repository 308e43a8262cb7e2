"""Stochastic gradient Langevin dynamics (Welling and Teh 2011)."""

from ._decay import AbstractDecay
from ._engine import AbstractSGMCMC, decay_field
from ._gradient import MinibatchGradient, batch_field, batching_field
from ._parts import Parts


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
        step_size: `h`. None takes `0.1 * batch_size / num_data**2`, which for one unit of
            Fisher information per row inflates the variance by about 5% of it and forgets
            in about 20 epochs. `SGMCMC("SGLD")` finds one in warm-up instead.
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
        return Parts("E", gradient, self.preconditioner, self.decay, by_rule=True)
