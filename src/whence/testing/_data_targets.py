"""Targets with data whose posterior and evidence are known exactly."""

import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import gammaln
from jax.scipy.stats import multivariate_normal, norm
from jaxtyping import Array, Float, Int

from ..core._key import seeded
from ..core._target import AbstractDataTarget
from ..core._types import PRNGKey, Scalar
from ._targets import Moments


class GaussianMean(AbstractDataTarget):
    """The mean of Gaussian data with known noise, under a Gaussian prior.

    `theta[j] ~ N(prior_mean, prior_sd)` and `y[i, j] ~ N(theta[j], noise_sd)`.

    Attributes:
        y: Data, shape `(data, dim)`.
        prior_mean: Mean of the prior.
        prior_sd: Standard deviation of the prior.
        noise_sd: Standard deviation of the data about `theta`.
    """

    y: Float[Array, "data dim"]
    prior_mean: Scalar
    prior_sd: Scalar
    noise_sd: Scalar

    def __init__(
        self,
        y: Float[Array, "data dim"],
        *,
        prior_mean: float = 0.0,
        prior_sd: float = 2.0,
        noise_sd: float = 1.0,
    ) -> None:
        self.y = y
        self.prior_mean = jnp.asarray(prior_mean, y.dtype)
        self.prior_sd = jnp.asarray(prior_sd, y.dtype)
        self.noise_sd = jnp.asarray(noise_sd, y.dtype)

    @classmethod
    @seeded
    def simulate(cls, num_data: int = 20, dim: int = 2, *, key: PRNGKey) -> "GaussianMean":
        """The target of data drawn from the model with default scales."""
        key_theta, key_noise = jr.split(key)
        theta = 2.0 * jr.normal(key_theta, (dim,))
        return cls(theta[None] + jr.normal(key_noise, (num_data, dim)))

    @property
    def truth(self) -> dict[str, Moments]:
        """Exact posterior moments of `theta`."""
        precision = self.prior_sd**-2 + len(self.y) * self.noise_sd**-2
        weighted = self.prior_mean / self.prior_sd**2 + self.y.sum(0) / self.noise_sd**2
        sd = jnp.broadcast_to(precision**-0.5, weighted.shape)
        return {"theta": Moments(weighted / precision, sd)}

    @property
    def log_evidence(self) -> Scalar:
        """Exact log evidence: prior times likelihood over posterior, at the mean."""
        mean, sd = self.truth["theta"]
        return self.log_density(mean) - norm.logpdf(mean, mean, sd).sum()

    @property
    def num_data(self) -> int:
        return self.y.shape[0]

    def init(self, *, key: PRNGKey) -> Float[Array, " dim"]:
        return jr.uniform(key, self.y.shape[1:], self.y.dtype, -2.0, 2.0)

    def sample_prior_position(self, *, key: PRNGKey) -> Float[Array, " dim"]:
        """A draw from the prior."""
        noise = jr.normal(key, self.y.shape[1:], self.y.dtype)
        return self.prior_mean + self.prior_sd * noise

    def log_prior(self, position: Float[Array, " dim"]) -> Scalar:
        return norm.logpdf(position, self.prior_mean, self.prior_sd).sum()

    def log_likelihood(
        self, position: Float[Array, " dim"], rows: Int[Array, " batch"] | None = None
    ) -> Float[Array, "..."]:
        y = self.y if rows is None else self.y[rows]
        return norm.logpdf(y, position[None], self.noise_sd).sum(1)

    def log_density(self, position: Float[Array, " dim"]) -> Scalar:
        return self.log_prior(position) + self.log_likelihood(position).sum()

    def constrain(self, position: Float[Array, " dim"]) -> dict[str, Array]:
        return {"theta": position}


class ConjugateRegression(AbstractDataTarget):
    """Linear regression with unknown noise under its conjugate prior.

    `variance ~ InverseGamma(shape, rate)`, `beta ~ N(0, prior_sd^2 variance)` and
    `y ~ N(x beta, variance)`. The posterior of `beta` is a correlated Student t, that of the
    log variance is skewed; both, and the evidence, are in closed form.

    Attributes:
        x: Covariates, shape `(data, feature)`.
        y: Responses, shape `(data,)`.
        prior_sd: Standard deviation of a coefficient in units of the noise.
        shape: Shape of the prior of the noise variance.
        rate: Rate of the prior of the noise variance.

    References:
        Bishop (2006), "Pattern Recognition and Machine Learning", exercises 3.12 and 3.23.
    """

    x: Float[Array, "data feature"]
    y: Float[Array, " data"]
    prior_sd: Scalar
    shape: Scalar
    rate: Scalar

    def __init__(
        self,
        x: Float[Array, "data feature"],
        y: Float[Array, " data"],
        *,
        prior_sd: float = 2.0,
        shape: float = 3.0,
        rate: float = 2.0,
    ) -> None:
        self.x = x
        self.y = y
        self.prior_sd = jnp.asarray(prior_sd, y.dtype)
        self.shape = jnp.asarray(shape, y.dtype)
        self.rate = jnp.asarray(rate, y.dtype)

    @classmethod
    @seeded
    def simulate(
        cls, num_data: int = 30, num_features: int = 3, *, key: PRNGKey
    ) -> "ConjugateRegression":
        """The target of data with correlated covariates, unit coefficients and unit noise."""
        key_shared, key_own, key_noise = jr.split(key, 3)
        shared = jr.normal(key_shared, (num_data, 1))
        x = 0.7 * shared + 0.7 * jr.normal(key_own, (num_data, num_features))
        return cls(x, x.sum(1) + jr.normal(key_noise, (num_data,)))

    def _posterior(self) -> tuple[Array, Array, Array, Array]:
        """Mean and precision of the coefficients; shape and rate of the variance."""
        identity = jnp.eye(self.x.shape[1], dtype=self.x.dtype)
        precision = self.x.T @ self.x + identity / self.prior_sd**2
        mean = jnp.linalg.solve(precision, self.x.T @ self.y)
        shape = self.shape + len(self.y) / 2
        rate = self.rate + (self.y @ self.y - mean @ precision @ mean) / 2
        return mean, precision, shape, rate

    @property
    def truth(self) -> dict[str, Moments]:
        """Exact posterior moments of `beta`, `variance` and `sigma`, its square root."""
        mean, precision, shape, rate = self._posterior()
        variance = rate / (shape - 1)
        sigma = jnp.sqrt(rate) * jnp.exp(gammaln(shape - 0.5) - gammaln(shape))
        return {
            "beta": Moments(mean, jnp.sqrt(variance * jnp.diag(jnp.linalg.inv(precision)))),
            "variance": Moments(variance, variance / jnp.sqrt(shape - 2)),
            "sigma": Moments(sigma, jnp.sqrt(variance - sigma**2)),
        }

    @property
    def log_evidence(self) -> Scalar:
        """Exact log evidence: prior times likelihood over posterior, at a point."""
        mean, precision, shape, rate = self._posterior()
        log_variance = jnp.log(rate / shape)
        position = {"beta": mean, "log_variance": log_variance}
        covariance = jnp.linalg.inv(precision) * jnp.exp(log_variance)
        posterior = multivariate_normal.logpdf(mean, mean, covariance) + _log_inverse_gamma(
            log_variance, shape, rate
        )
        return self.log_density(position) - posterior

    @property
    def num_data(self) -> int:
        return self.y.shape[0]

    def init(self, *, key: PRNGKey) -> dict[str, Array]:
        key_beta, key_variance = jr.split(key)
        dtype = self.y.dtype
        return {
            "beta": jr.uniform(key_beta, self.x.shape[1:], dtype, -2.0, 2.0),
            "log_variance": jr.uniform(key_variance, (), dtype, -2.0, 2.0),
        }

    def sample_prior_position(self, *, key: PRNGKey) -> dict[str, Array]:
        """A draw from the prior."""
        key_beta, key_variance = jr.split(key)
        dtype = self.y.dtype
        variance = self.rate / jr.gamma(key_variance, self.shape, (), dtype)
        noise = jr.normal(key_beta, self.x.shape[1:], dtype)
        return {
            "beta": self.prior_sd * jnp.sqrt(variance) * noise,
            "log_variance": jnp.log(variance),
        }

    def log_prior(self, position: dict[str, Array]) -> Scalar:
        sd = self.prior_sd * jnp.exp(position["log_variance"] / 2)
        return norm.logpdf(position["beta"], 0.0, sd).sum() + _log_inverse_gamma(
            position["log_variance"], self.shape, self.rate
        )

    def log_likelihood(
        self, position: dict[str, Array], rows: Int[Array, " batch"] | None = None
    ) -> Float[Array, "..."]:
        x, y = (self.x, self.y) if rows is None else (self.x[rows], self.y[rows])
        sd = jnp.exp(position["log_variance"] / 2)
        return norm.logpdf(y, x @ position["beta"], sd)

    def log_density(self, position: dict[str, Array]) -> Scalar:
        return self.log_prior(position) + self.log_likelihood(position).sum()

    def constrain(self, position: dict[str, Array]) -> dict[str, Array]:
        variance = jnp.exp(position["log_variance"])
        return {
            "beta": position["beta"],
            "variance": variance,
            "sigma": jnp.sqrt(variance),
        }


def _log_inverse_gamma(log_variance: Scalar, shape: Scalar, rate: Scalar) -> Scalar:
    """Log density of the logarithm of an inverse Gamma variable."""
    # The density of v = exp(s), r^a / Gamma(a) v^(-a-1) exp(-r/v), times dv/ds = v.
    return (
        shape * jnp.log(rate)
        - gammaln(shape)
        - shape * log_variance
        - rate * jnp.exp(-log_variance)
    )
