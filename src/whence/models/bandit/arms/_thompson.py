"""Thompson sampling: play each arm with the probability that it is the best."""

from typing import ClassVar

import equinox as eqx

from ....core._convert import part, positive
from ....core._key import seeded
from ....core._types import PRNGKey
from .._policy import Arm, highest
from ._belief import AbstractBelief
from ._belief_policy import AbstractBeliefPolicy
from ._beta_bernoulli import BetaBernoulli
from ._known_variance import KnownVariance
from ._normal_gamma import NormalGamma


class AbstractThompson(AbstractBeliefPolicy):
    """Draw a mean reward for each arm from the belief, and pull the arm with the highest.

    References:
        Thompson (1933), doi:10.1093/biomet/25.3-4.285.
        Russo et al. (2018), "A tutorial on Thompson sampling", doi:10.1561/2200000070.
    """

    @seeded
    def act(self, state: AbstractBelief, *, key: PRNGKey) -> Arm:
        return highest(state.sample(key=key))


class VarTS(AbstractThompson):
    """Thompson sampling that learns each arm's mean and variance.

    Attributes:
        prior: Belief in means and precisions before the first reward.

    References:
        Saha and Kveton (2024), "Only pay for what is uncertain: variance-adaptive Thompson
        sampling", ICLR.
    """

    State: ClassVar[type] = NormalGamma

    prior: NormalGamma = eqx.field(converter=part("prior", NormalGamma))


class KnownVarianceTS(AbstractThompson):
    """Thompson sampling of Gaussian arms whose variances are known and may differ.

    Attributes:
        prior: Belief in the means before the first reward, and the variances.
    """

    State: ClassVar[type] = KnownVariance

    prior: KnownVariance = eqx.field(converter=part("prior", KnownVariance))


class BernoulliTS(AbstractThompson):
    """Thompson sampling of arms that succeed or fail.

    Attributes:
        prior: Belief in the probabilities of success before the first reward.
    """

    State: ClassVar[type] = BetaBernoulli

    prior: BetaBernoulli = eqx.field(converter=part("prior", BetaBernoulli))


class GaussianTS(AbstractThompson):
    """Thompson sampling that takes one variance for all arms as given.

    If that is too small it may settle on a bad arm for good; if too large it explores more
    than it needs to.

    Attributes:
        prior: Belief in the means before the first reward, and the variance.

    Args:
        variance: Variance of the rewards of every arm, in squared units of the reward.
        arms: Number of arms.
        mu: Expected mean reward.
        kappa: What that is worth, in numbers of rewards: its variance is
            `variance / kappa`, as in `NormalGamma`.

    Raises:
        ValueError: If `variance` or `kappa` is not positive, or `arms` below 1.

    References:
        Agrawal and Goyal (2017), "Near-optimal regret bounds for Thompson sampling",
        doi:10.1145/3088510.
    """

    State: ClassVar[type] = KnownVariance

    prior: KnownVariance

    def __init__(
        self,
        variance: float | int,
        *,
        arms: int,
        mu: float | int = 0.0,
        kappa: float | int = 1.0,
    ):
        variance, kappa = positive("variance")(variance), positive("kappa")(kappa)
        self.prior = KnownVariance(mu, variance / kappa, variance, arms=arms)
