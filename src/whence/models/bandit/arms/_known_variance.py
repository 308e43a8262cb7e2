"""Arms with Gaussian rewards of unknown mean and known variance."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from ....core._key import seeded
from ....core._types import PRNGKey
from .._checks import Numbers, per_arm, require_finite, require_positive
from .._student_t import standard_normal
from ._belief import AbstractBelief, PerArm, chosen, chosen_many, reward_moments


class KnownVariance(AbstractBelief):
    """Gaussian rewards of unknown mean and known variance, which may differ between arms.

    Rewards of an arm are `Normal(m, noise)`, the belief is `m ~ Normal(mu, variance)`.

    Args:
        mu: Expected mean reward, in units of the reward; a scalar, or shape `(arm, *batch)`,
            like the others.
        variance: Variance of the belief in the mean reward, in squared units of the reward.
        noise: Variance of the rewards about their mean, in squared units of the reward.
        arms: Number of arms, if all others are scalars.

    Raises:
        ValueError: If shapes do not match, or a variance is not positive.

    References:
        DeGroot (1970), "Optimal Statistical Decisions", section 9.5.
    """

    mu: PerArm
    variance: PerArm
    noise: PerArm

    def __init__(
        self, mu: Numbers, variance: Numbers, noise: Numbers, *, arms: int | None = None
    ):
        require_finite("mu", mu)
        require_positive("variance", variance)
        require_positive("noise", noise)
        self.mu, self.variance, self.noise = per_arm(
            arms, mu=mu, variance=variance, noise=noise
        )

    @property
    def mean(self) -> PerArm:
        return self.mu

    def update(self, arm: Numbers, reward: Numbers) -> "KnownVariance":
        require_finite("reward", reward)
        hit, reward = chosen(self, arm, reward)
        return self._updated(hit.astype(self.mu.dtype), reward)

    def update_batch(self, arms: Numbers, rewards: Numbers) -> "KnownVariance":
        require_finite("rewards", rewards)
        count, mean, _ = reward_moments(*chosen_many(self, arms, rewards))
        return self._updated(count, mean)

    def _updated(self, count, mean) -> "KnownVariance":
        # Precisions add up, in a form that needs no reciprocal of a variance.
        total = self.noise + count * self.variance
        gain = count * self.variance / total
        mu = jnp.where(count > 0, self.mu + gain * (mean - self.mu), self.mu)
        return KnownVariance(mu, self.variance * (self.noise / total), self.noise)

    def log_evidence(self, arms: Numbers, rewards: Numbers) -> PerArm:
        require_finite("rewards", rewards)
        count, mean, squares = reward_moments(*chosen_many(self, arms, rewards))
        total = self.noise + count * self.variance
        fit = squares / self.noise + count * (mean - self.mu) ** 2 / total
        log_det = count * jnp.log(2 * jnp.pi * self.noise) + jnp.log(total / self.noise)
        return -(fit + log_det) / 2

    @seeded
    def sample(self, shape: tuple[int, ...] = (), *, key: PRNGKey) -> Float[Array, "..."]:
        # `NormalGamma` uses the key in the same way: with very large `alpha`, the same draws.
        noise = standard_normal(key, (*shape, *self.mu.shape), self.mu.dtype)
        return self.mu + jnp.sqrt(self.variance) * noise

    def predictive(self) -> dist.Normal:
        return dist.Normal(self.mu, jnp.sqrt(self.variance + self.noise))
