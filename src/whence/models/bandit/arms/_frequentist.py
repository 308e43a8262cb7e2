"""Thompson sampling of Gaussian arms without a prior to state."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

from ....core._convert import number, whole
from ....core._key import seeded
from ....core._types import PRNGKey
from .._policy import Arm, highest
from .._student_t import standard_normal, standard_t
from ._statistics import AbstractStatisticsPolicy, ArmStatistics


class HondaTakemura(AbstractStatisticsPolicy):
    """Thompson sampling with the improper prior `variance ** (-1 - a)`.

    With `a < 0` asymptotically optimal; with `a >= 0`, which includes the reference prior
    (`a = 0`), its expected regret grows faster than logarithmically.

    Attributes:
        arms: Number of arms.
        a: Power of the prior: the smaller, the more it explores.

    References:
        Honda and Takemura (2014), "Optimality of Thompson sampling for Gaussian bandits
        depends on priors", AISTATS.
    """

    arms: int = eqx.field(converter=whole("arms", least=1))
    a: float = eqx.field(default=-0.5, converter=number("a"))

    @property
    def first_pulls(self) -> int:
        """Rewards of each arm before the posterior is proper."""
        return max(2, 3 - math.floor(2 * self.a))

    @seeded
    def act(self, state: ArmStatistics, *, key: PRNGKey) -> Arm:
        degrees = jnp.maximum(state.count + 2 * self.a - 1, 1)
        noise = standard_t(key, degrees, state.mean.shape)
        scale = jnp.sqrt(state.squares / (state.at_least_one * degrees))
        return highest(state.first(state.mean + scale * noise, self.first_pulls))


def _weight(rho: Any) -> float:
    return math.inf if rho == math.inf else number("rho", least=0)(rho)


class MVTS(AbstractStatisticsPolicy):
    """Thompson sampling for a trade of mean against variance, `rho mean - variance`.

    Means are drawn from `Normal(mean, 1 / count)` whatever the variance, as the authors
    have it: rewards should have a variance of about 1.

    Attributes:
        arms: Number of arms.
        rho: Weight of the mean, in units of the reward; infinity for the mean alone.

    References:
        Zhu and Tan (2020), "Thompson sampling algorithms for mean-variance bandits", ICML.
    """

    arms: int = eqx.field(converter=whole("arms", least=1))
    rho: float = eqx.field(default=math.inf, converter=_weight)

    @seeded
    def act(self, state: ArmStatistics, *, key: PRNGKey) -> Arm:
        key_mean, key_precision = jr.split(key)
        shape, dtype = state.mean.shape, state.mean.dtype
        noise = standard_normal(key_mean, shape, dtype)
        value = state.mean + noise / jnp.sqrt(state.at_least_one)
        if math.isfinite(self.rho):
            gamma = jr.gamma(key_precision, (state.count + 1) / 2, shape, dtype)
            value = self.rho * value - (state.squares + 1) / (2 * gamma)
        return highest(state.first(value))
