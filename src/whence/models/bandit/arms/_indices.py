"""Upper confidence bounds: pull the arm that could be best at a stretch."""

import abc
import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from ....core._convert import part, positive, whole
from ....core._key import seeded
from ....core._types import PRNGKey
from .._checks import require_counts, require_within
from .._policy import Arm, highest
from .._student_t import t_upper_quantile
from ._belief import PerArm
from ._belief_policy import AbstractBeliefPolicy
from ._normal_gamma import NormalGamma
from ._statistics import AbstractStatisticsPolicy, ArmStatistics


class AbstractIndex(AbstractStatisticsPolicy):
    """Pull the arm with the highest index, the first of them in a tie.

    An index is a function of the rewards' statistics; arms that have too few rewards to
    have one come first.
    """

    @abc.abstractmethod
    def index(self, state: ArmStatistics) -> PerArm:
        """Return the index of each arm, in units of the reward."""

    @seeded
    def act(self, state: ArmStatistics, *, key: PRNGKey) -> Arm:
        return highest(self.index(state))


class UCB1(AbstractIndex):
    """`mean + scale sqrt(2 log(round) / count)`.

    Attributes:
        arms: Number of arms.
        scale: Range of the rewards (1 for rewards from 0 to 1), or a guess of their scale.

    References:
        Auer, Cesa-Bianchi and Fischer (2002), figure 1, doi:10.1023/A:1013689704352.
    """

    arms: int = eqx.field(converter=whole("arms", least=1))
    scale: float = eqx.field(default=1.0, converter=positive("scale"))

    def index(self, state: ArmStatistics) -> PerArm:
        width = jnp.sqrt(2 * jnp.log(state.next_round) / state.at_least_one)
        return state.first(state.mean + self.scale * width)


class UCB1Tuned(AbstractIndex):
    """`mean + sqrt(log(round) / count min(1/4, variance + sqrt(2 log(round) / count)))`.

    For rewards from 0 to 1, which have a variance of at most 1/4: with any others it may
    settle on a bad arm for good.

    Attributes:
        arms: Number of arms.

    References:
        Auer, Cesa-Bianchi and Fischer (2002), section 4, doi:10.1023/A:1013689704352.
    """

    arms: int = eqx.field(converter=whole("arms", least=1))

    def index(self, state: ArmStatistics) -> PerArm:
        ratio = jnp.log(state.next_round) / state.at_least_one
        bound = jnp.minimum(0.25, state.variance + jnp.sqrt(2 * ratio))
        return state.first(state.mean + jnp.sqrt(ratio * bound))


class UCBV(AbstractIndex):
    """`mean + sqrt(2 variance e / count) + 3 range e / count` with `e = zeta log(round)`.

    Attributes:
        arms: Number of arms.
        range: Length of an interval that contains all rewards, in units of the reward.
        zeta: Rate of exploration.

    References:
        Audibert, Munos and Szepesvari (2009), equation 1, doi:10.1016/j.tcs.2009.01.016.
    """

    arms: int = eqx.field(converter=whole("arms", least=1))
    range: float = eqx.field(default=1.0, converter=positive("range"))
    zeta: float = eqx.field(default=1.0, converter=positive("zeta"))

    def index(self, state: ArmStatistics) -> PerArm:
        ratio = self.zeta * jnp.log(state.next_round) / state.at_least_one
        width = jnp.sqrt(2 * state.variance * ratio) + 3 * self.range * ratio
        return state.first(state.mean + width)


class UCB1Normal(AbstractIndex):
    """For Gaussian rewards of unknown variance; explores very much.

    Arms with fewer than `8 log(round)` rewards come first; then
    `mean + sqrt(16 s2 log(round - 1) / count)` with the unbiased variance `s2`.

    Attributes:
        arms: Number of arms.

    References:
        Auer, Cesa-Bianchi and Fischer (2002), figure 4, doi:10.1023/A:1013689704352.
    """

    arms: int = eqx.field(converter=whole("arms", least=1))

    def index(self, state: ArmStatistics) -> PerArm:
        unbiased = state.squares / jnp.maximum(state.count - 1, 1)
        # In the first round the logarithm of 0 would be taken; no arm has an index then.
        log_rounds = jnp.log(jnp.maximum(state.next_round - 1, 1))
        width = jnp.sqrt(16 * unbiased * log_rounds / state.at_least_one)
        least = jnp.maximum(jnp.ceil(8 * jnp.log(state.next_round)), 2)
        return state.first(state.mean + width, least)


class CHKUCB(AbstractIndex):
    """`mean + sqrt(variance (round ** (2 / (count - 2)) - 1))`, after three rewards per arm.

    Asymptotically optimal for Gaussian rewards of unknown mean and variance.

    Attributes:
        arms: Number of arms.

    References:
        Cowan, Honda and Katehakis (2018), "Normal bandits of unknown means and variances",
        Journal of Machine Learning Research 18(154).
    """

    arms: int = eqx.field(converter=whole("arms", least=1))

    def index(self, state: ArmStatistics) -> PerArm:
        power = 2 / jnp.maximum(state.count - 2, 1)
        growth = jnp.expm1(power * jnp.log(state.next_round))
        return state.first(state.mean + jnp.sqrt(state.variance * growth), 3)


class BayesUCB(AbstractBeliefPolicy):
    """Pull the arm with the highest quantile of the belief in its mean.

    The quantile is that of probability `1 - 1 / (round + 1/2)`, of the t distribution of
    the arm's mean. Rounds are counted by how much `kappa` has grown, so that a state must
    have begun from a prior with the `kappa` and `alpha` of this one.

    Attributes:
        prior: Belief in means and precisions before the first reward, with `alpha` of at
            least 1, below which quantiles are not computed accurately.

    References:
        Kaufmann, Cappe and Garivier (2012), "On Bayesian upper confidence bounds for bandit
        problems", AISTATS.
    """

    State: ClassVar[type] = NormalGamma

    prior: NormalGamma = eqx.field(converter=part("prior", NormalGamma))

    def __check_init__(self):
        require_within("prior.alpha", self.prior.alpha, 1.0, math.inf)

    @seeded
    def act(self, state: NormalGamma, *, key: PRNGKey) -> Arm:
        """Return the arm with the highest quantile, the first of them in a tie."""
        prior = self.prior.expand(state.batch_shape)
        counts = state.kappa - prior.kappa
        require_counts("kappa", counts, state.kappa)
        require_counts("alpha", 2 * (state.alpha - prior.alpha), state.alpha, same=counts)
        round = jnp.sum(counts, axis=0) + 1
        quantile = t_upper_quantile(1 / (round + 0.5), 2 * state.alpha)
        return highest(state.mu + state.scale * quantile)
