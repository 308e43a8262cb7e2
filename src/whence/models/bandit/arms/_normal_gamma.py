"""Arms with Gaussian rewards of unknown mean and unknown variance."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from ....core._key import seeded
from ....core._types import PRNGKey
from .._checks import Numbers, per_arm, require_finite, require_positive
from .._student_t import standard_t
from ._belief import AbstractBelief, PerArm, chosen, chosen_many, reward_moments
from ._prior_fit import fit_normal_gamma, match_normal_gamma


class NormalGamma(AbstractBelief):
    """Gaussian rewards with unknown mean and precision, and the conjugate belief in both.

    Rewards of an arm are `Normal(m, 1 / precision)`; the belief is
    `precision ~ Gamma(alpha, rate=beta)`, `m | precision ~ Normal(mu, 1 / (kappa precision))`.
    Hence the expected variance of a reward is `beta / (alpha - 1)` if `alpha > 1`, and `m`
    has a t distribution with `2 alpha` degrees of freedom, location `mu` and squared scale
    `beta / (alpha kappa)`.

    Args:
        mu: Expected mean reward, in units of the reward; a scalar, or shape `(arm, *batch)`,
            like the others.
        kappa: What the belief in `mu` is worth, in numbers of rewards.
        alpha: Half the number of rewards that the belief in the precision is worth.
        beta: Half the sum of squares that goes with it, in squared units of the reward.
        arms: Number of arms, if all others are scalars.

    Raises:
        ValueError: If shapes do not match, or a parameter but `mu` is not positive.

    References:
        DeGroot (1970), "Optimal Statistical Decisions", section 9.6.
        Murphy (2007), "Conjugate Bayesian analysis of the Gaussian distribution", section 3.
    """

    mu: PerArm
    kappa: PerArm
    alpha: PerArm
    beta: PerArm

    def __init__(
        self,
        mu: Numbers,
        kappa: Numbers,
        alpha: Numbers,
        beta: Numbers,
        *,
        arms: int | None = None,
    ):
        require_finite("mu", mu)
        for name, value in {"kappa": kappa, "alpha": alpha, "beta": beta}.items():
            require_positive(name, value)
        self.mu, self.kappa, self.alpha, self.beta = per_arm(
            arms, mu=mu, kappa=kappa, alpha=alpha, beta=beta
        )

    @staticmethod
    def from_moments(means: Numbers, variances: Numbers, *, arms: int) -> "NormalGamma":
        """Estimate a prior from the true means and variances of past arms, by moments.

        Args:
            means: Mean reward of each past arm, shape `(past,)`.
            variances: Variance of each past arm's rewards, shape `(past,)`.
            arms: Number of arms of the new problem.

        Returns:
            The same prior for each arm: its expected variance and the variance of that, its
            expected mean and the variance of that, are those of the past arms.

        Raises:
            ValueError: If there are fewer than two past arms, or all are alike.
        """
        return NormalGamma(*match_normal_gamma(means, variances), arms=arms)

    @staticmethod
    def fit_evidence(rewards: Sequence[Numbers], *, arms: int) -> "NormalGamma":
        """Estimate a prior from the rewards of past arms, by maximum marginal likelihood.

        Args:
            rewards: Rewards of each past arm, arrays of shape `(data,)`.
            arms: Number of arms of the new problem.

        Returns:
            The same prior for each arm.

        Raises:
            ValueError: If fewer than two past arms have rewards, or all rewards are equal.
        """
        return NormalGamma(*fit_normal_gamma(rewards), arms=arms)

    @property
    def mean(self) -> PerArm:
        return self.mu

    @property
    def expected_variance(self) -> PerArm:
        """Expected variance of an arm's rewards; infinite if `alpha <= 1`."""
        above = jnp.where(self.alpha > 1, self.alpha - 1, 1)
        return jnp.where(self.alpha > 1, self.beta / above, jnp.inf)

    @property
    def scale(self) -> PerArm:
        """Scale of the t distribution of an arm's mean."""
        return jnp.sqrt(self.beta / (self.alpha * self.kappa))

    def update(self, arm: Numbers, reward: Numbers) -> "NormalGamma":
        require_finite("reward", reward)
        hit, reward = chosen(self, arm, reward)
        error = reward - self.mu
        grown = self.kappa + 1
        return NormalGamma(
            jnp.where(hit, self.mu + error / grown, self.mu),
            jnp.where(hit, grown, self.kappa),
            jnp.where(hit, self.alpha + 0.5, self.alpha),
            jnp.where(hit, self.beta + self.kappa * error**2 / (2 * grown), self.beta),
        )

    def update_batch(self, arms: Numbers, rewards: Numbers) -> "NormalGamma":
        require_finite("rewards", rewards)
        count, mean, squares = reward_moments(*chosen_many(self, arms, rewards))
        kappa = self.kappa + count
        between = self.kappa * count * (mean - self.mu) ** 2 / kappa
        return NormalGamma(
            self.mu + count / kappa * (mean - self.mu),
            kappa,
            self.alpha + count / 2,
            self.beta + (squares + between) / 2,
        )

    def log_evidence(self, arms: Numbers, rewards: Numbers) -> PerArm:
        post = self.update_batch(arms, rewards)
        count = 2 * (post.alpha - self.alpha)
        return (
            gammaln(post.alpha)
            - gammaln(self.alpha)
            + self.alpha * jnp.log(self.beta)
            - post.alpha * jnp.log(post.beta)
            + (jnp.log(self.kappa) - jnp.log(post.kappa) - count * jnp.log(2 * jnp.pi)) / 2
        )

    @seeded
    def sample(self, shape: tuple[int, ...] = (), *, key: PRNGKey) -> Float[Array, "..."]:
        """Draw mean rewards, the precisions integrated out: t draws by Bailey's method."""
        noise = standard_t(key, 2 * self.alpha, (*shape, *self.mu.shape))
        return self.mu + self.scale * noise

    def predictive(self) -> dist.StudentT:
        """Return the t distribution of the next reward of each arm."""
        return dist.StudentT(2 * self.alpha, self.mu, self.scale * jnp.sqrt(self.kappa + 1))

    def mean_distribution(self) -> dist.StudentT:
        """Return the t distribution of the mean reward of each arm."""
        return dist.StudentT(2 * self.alpha, self.mu, self.scale)
