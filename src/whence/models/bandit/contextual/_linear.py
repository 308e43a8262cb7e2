"""Rewards that are linear in features, with unknown coefficients and unknown variance."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from ....core._key import seeded
from ....core._types import PRNGKey, Scalar
from .._checks import Numbers, known, require_finite, require_positive


class LinearGaussian(eqx.Module):
    """Rewards `features @ w + noise`, with coefficients and noise variance both unknown.

    `variance ~ InverseGamma(alpha, beta)`, `w | variance ~ Normal(mu, variance * cov)`.
    With one feature that is always 1 this is one arm of `NormalGamma`, with
    `kappa = 1 / cov`. Use `jax.vmap` for one such belief per arm.

    Attributes:
        mu: Expected coefficients, shape `(feature,)`.
        cov: Covariance of the coefficients in units of the noise variance, shape
            `(feature, feature)`.
        alpha: Shape of the inverse gamma distribution of the noise variance.
        beta: Its scale, in squared units of the reward.

    Raises:
        ValueError: If shapes do not match, `cov` is not a covariance, or `alpha` or
            `beta` is not positive.

    References:
        O'Hagan and Forster (2004), "Kendall's Advanced Theory of Statistics 2B: Bayesian
        Inference", chapter 11.
    """

    mu: Float[Array, " feature"]
    cov: Float[Array, "feature feature"]
    alpha: Scalar
    beta: Scalar

    def __init__(self, mu: Numbers, cov: Numbers, alpha: Numbers, beta: Numbers):
        given = [jnp.asarray(x) for x in (mu, cov, alpha, beta)]
        dtype = jnp.result_type(*given, 0.0)
        mu, cov, alpha, beta = (x.astype(dtype) for x in given)
        if mu.ndim != 1 or cov.shape != 2 * mu.shape or alpha.ndim or beta.ndim:
            raise ValueError(
                "`mu` must be a vector, `cov` a square matrix of its length, `alpha` and "
                f"`beta` scalars; got {mu.shape}, {cov.shape}, {alpha.shape}, {beta.shape}."
            )
        require_finite("mu", mu)
        _require_covariance(cov)
        require_positive("alpha", alpha)
        require_positive("beta", beta)
        self.mu, self.cov, self.alpha, self.beta = mu, cov, alpha, beta

    def update(self, features: Numbers, reward: Numbers) -> "LinearGaussian":
        """Return the belief after one more reward.

        One rank-one step; rounding errors of the covariance add up over steps. After many
        thousand in float32, rather start anew with `update_batch`.

        Args:
            features: Features of the action taken, shape `(feature,)`.
            reward: Its reward, a scalar.

        Raises:
            ValueError: If shapes do not match or a value is not finite.
        """
        x, y = self._checked(features, reward, ())
        along = self.cov @ x
        spread = 1 + x @ along  # predictive variance in units of the noise variance
        error = y - x @ self.mu
        return LinearGaussian(
            self.mu + along * error / spread,
            self.cov - jnp.outer(along, along) / spread,
            self.alpha + 0.5,
            self.beta + error**2 / (2 * spread),
        )

    def update_batch(self, features: Numbers, rewards: Numbers) -> "LinearGaussian":
        """Return the belief after many rewards, in any order.

        Args:
            features: Features of the actions taken, shape `(data, feature)`.
            rewards: Their rewards, shape `(data,)`.

        Raises:
            ValueError: If shapes do not match or a value is not finite.
        """
        x, y = self._checked(features, rewards, jnp.asarray(rewards).shape[:1])
        # cov_N = (cov^-1 + x'x)^-1 by way of the Cholesky factor L of cov, as
        # L (I + L'x'xL)^-1 L', which needs no inverse of cov.
        root = jnp.linalg.cholesky(self.cov)
        white = x @ root
        gram = jnp.linalg.cholesky(jnp.eye(len(self.mu), dtype=x.dtype) + white.T @ white)
        error = y - x @ self.mu
        step = cho_solve((gram, True), white.T @ error)
        cov = root @ cho_solve((gram, True), root.T)
        # e'(I + XcovX')^-1 e = |e - white step|^2 + |step|^2, a sum of squares.
        quadratic = jnp.sum((error - white @ step) ** 2) + jnp.sum(step**2)
        return LinearGaussian(
            self.mu + root @ step,
            (cov + cov.T) / 2,
            self.alpha + y.shape[0] / 2,
            self.beta + quadratic / 2,
        )

    def log_evidence(self, features: Numbers, rewards: Numbers) -> Scalar:
        """Return the log marginal likelihood of rewards, in nats.

        Args:
            features: Features of the actions taken, shape `(data, feature)`.
            rewards: Their rewards, shape `(data,)`.
        """
        post = self.update_batch(features, rewards)
        num = jnp.asarray(rewards).shape[0]
        log_det = jnp.linalg.slogdet(post.cov)[1] - jnp.linalg.slogdet(self.cov)[1]
        return (
            gammaln(post.alpha)
            - gammaln(self.alpha)
            + self.alpha * jnp.log(self.beta)
            - post.alpha * jnp.log(post.beta)
            + (log_det - num * jnp.log(2 * jnp.pi)) / 2
        )

    @seeded
    def sample(self, shape: tuple[int, ...] = (), *, key: PRNGKey) -> Float[Array, "..."]:
        """Draw coefficients from the belief: Thompson sampling plays `argmax(features @ w)`.

        Args:
            shape: Shape of independent draws.
            key: For the draws.

        Returns:
            Draws of shape `(*shape, feature)`.
        """
        key_variance, key_noise = jr.split(key)
        dtype = self.mu.dtype
        variance = self.beta / jr.gamma(key_variance, self.alpha, shape, dtype)
        noise = jr.normal(key_noise, (*shape, len(self.mu)), dtype)
        root = jnp.linalg.cholesky(self.cov)
        return self.mu + jnp.sqrt(variance)[..., None] * (noise @ root.T)

    def predictive(self, features: Numbers) -> dist.StudentT:
        """Return the t distribution of the next reward of each action.

        Args:
            features: Features of actions, shape `(..., feature)`.
        """
        x = jnp.asarray(features, self.mu.dtype)
        spread = 1 + jnp.einsum("...i,ij,...j->...", x, self.cov, x)
        scale = jnp.sqrt(self.beta / self.alpha * spread)
        return dist.StudentT(2 * self.alpha, x @ self.mu, scale)

    def _checked(self, features, rewards, lead) -> tuple[Array, Array]:
        require_finite("features", features)
        require_finite("reward", rewards)
        x = jnp.asarray(features, self.mu.dtype)
        y = jnp.asarray(rewards, self.mu.dtype)
        want = (*lead, len(self.mu))
        if x.shape != want or y.shape != lead:
            raise ValueError(
                f"`features` must have shape {want} and rewards {lead}; "
                f"got {x.shape} and {y.shape}."
            )
        return x, y


def _require_covariance(cov) -> None:
    values = known(cov, "cov")
    if values is None:
        return
    require_finite("cov", values)
    tolerance = 1e-5 * abs(values).max()
    if abs(values - values.T).max() > tolerance:
        raise ValueError(f"`cov` must be symmetric; got {values.tolist()}.")
    if not (smallest := np.linalg.eigvalsh(values).min()) > 0:
        raise ValueError(
            f"`cov` must be positive definite; its smallest eigenvalue is {smallest:g}."
        )
