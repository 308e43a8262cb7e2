"""What policies without a prior remember: count, mean and spread of each arm's rewards."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp

from .._checks import Numbers, one_hot, pulled, require_finite
from .._policy import AbstractPolicy
from ._belief import PerArm


class ArmStatistics(eqx.Module):
    """Sufficient statistics of each arm's rewards.

    Attributes:
        count: Number of rewards, shape `(arm, *batch)`.
        mean: Their mean, in units of the reward; 0 without any.
        squares: Sum of their squared deviations from it.
    """

    count: PerArm
    mean: PerArm
    squares: PerArm

    @property
    def arms(self) -> int:
        """Number of arms."""
        return self.count.shape[0]

    @property
    def next_round(self):
        """Number of the round to come, counted from 1, shape `(*batch,)`."""
        return jnp.sum(self.count, axis=0) + 1

    @property
    def at_least_one(self) -> PerArm:
        """The counts, with 1 for 0, to divide by."""
        return jnp.maximum(self.count, 1)

    @property
    def variance(self) -> PerArm:
        """Mean squared deviation, without a correction for the degree of freedom."""
        return self.squares / self.at_least_one

    def first(self, index: PerArm, least: Any = 1) -> PerArm:
        """Return an index with infinity for arms that have too few rewards."""
        return jnp.where(self.count < least, jnp.inf, index)

    def update(self, arm: Numbers, reward: Numbers) -> "ArmStatistics":
        """Return the statistics after one more reward, in Welford's form."""
        require_finite("reward", reward)
        batch = self.count.shape[1:]
        arm, reward = pulled(arm, reward, self.arms, batch, self.mean.dtype)
        hit = one_hot(arm, self.arms)
        count = self.count + hit
        error = reward - self.mean
        mean = self.mean + error / jnp.maximum(count, 1)
        squares = self.squares + error * (reward - mean)
        return ArmStatistics(
            count, jnp.where(hit, mean, self.mean), jnp.where(hit, squares, self.squares)
        )


class AbstractStatisticsPolicy(AbstractPolicy):
    """A rule that chooses by count, mean and spread of each arm's rewards."""

    State: ClassVar[type] = ArmStatistics

    def init(self, batch: tuple[int, ...] = ()) -> ArmStatistics:
        zeros = jnp.zeros((self.arms, *batch))
        return ArmStatistics(zeros, zeros, zeros)

    def update(self, state: ArmStatistics, arm: Numbers, reward: Numbers) -> ArmStatistics:
        return state.update(arm, reward)
