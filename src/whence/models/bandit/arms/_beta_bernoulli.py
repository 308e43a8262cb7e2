"""Arms whose rewards are successes and failures."""

import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from jax.scipy.special import betaln
from jaxtyping import Array, Float

from ....core._key import seeded
from ....core._types import PRNGKey
from .._checks import Numbers, per_arm, require_all, require_positive
from ._belief import AbstractBelief, PerArm, chosen, chosen_many


class BetaBernoulli(AbstractBelief):
    """Rewards of 0 or 1 with an unknown probability of 1, `Beta(alpha, beta)`.

    By default every probability is as likely as any other.

    Args:
        alpha: Successes that the belief is worth; a scalar, or shape `(arm, *batch)`.
        beta: Failures that it is worth; a scalar, or shape `(arm, *batch)`.
        arms: Number of arms, if both are scalars.

    Raises:
        ValueError: If shapes do not match, or a parameter is not positive.

    References:
        Thompson (1933), doi:10.1093/biomet/25.3-4.285.
    """

    alpha: PerArm
    beta: PerArm

    def __init__(self, alpha: Numbers = 1.0, beta: Numbers = 1.0, *, arms: int | None = None):
        require_positive("alpha", alpha)
        require_positive("beta", beta)
        self.alpha, self.beta = per_arm(arms, alpha=alpha, beta=beta)

    @property
    def mean(self) -> PerArm:
        return self.alpha / (self.alpha + self.beta)

    def update(self, arm: Numbers, reward: Numbers) -> "BetaBernoulli":
        _require_binary("reward", reward)
        hit, reward = chosen(self, arm, reward)
        return BetaBernoulli(
            self.alpha + jnp.where(hit, reward, 0), self.beta + jnp.where(hit, 1 - reward, 0)
        )

    def update_batch(self, arms: Numbers, rewards: Numbers) -> "BetaBernoulli":
        _require_binary("rewards", rewards)
        hit, rewards = chosen_many(self, arms, rewards)
        return BetaBernoulli(
            self.alpha + jnp.sum(jnp.where(hit, rewards, 0), 0),
            self.beta + jnp.sum(jnp.where(hit, 1 - rewards, 0), 0),
        )

    def log_evidence(self, arms: Numbers, rewards: Numbers) -> PerArm:
        post = self.update_batch(arms, rewards)
        return betaln(post.alpha, post.beta) - betaln(self.alpha, self.beta)

    @seeded
    def sample(self, shape: tuple[int, ...] = (), *, key: PRNGKey) -> Float[Array, "..."]:
        return jr.beta(
            key, self.alpha, self.beta, (*shape, *self.alpha.shape), self.alpha.dtype
        )

    def predictive(self) -> dist.BernoulliProbs:
        return dist.BernoulliProbs(self.mean)


def _require_binary(name, value) -> None:
    require_all(name, value, "0 or 1", lambda v: (v == 0) | (v == 1))
