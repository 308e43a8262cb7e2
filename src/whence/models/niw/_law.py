"""Normal-inverse-Wishart laws: of whole vectors, and the product of one-dimensional ones.

They are two instantiations of one hierarchy and are never mixed: the first has one inverse
Wishart over a matrix, needs more than d - 1 degrees of freedom and the digamma function of d
arguments; the second has an inverse gamma variance for each weight and needs more than 0.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jax.scipy.linalg import cho_solve
from jax.scipy.special import digamma, multigammaln
from jaxtyping import Array, Float

from ...core._convert import number
from ...core._key import seeded
from ...core._types import PRNGKey, Scalar
from ._covariance import log_det


class NIW(eqx.Module):
    """`Sigma ~ IW(df, scale)` and `mu | Sigma ~ N(mean, Sigma / strength)`.

    The density of Sigma is proportional to `|Sigma|^-((df + d + 1) / 2) exp(-tr(scale
    Sigma^-1) / 2)`.

    References:
        Gelman, Carlin, Stern, Dunson, Vehtari, Rubin (2013), Bayesian Data Analysis, 3rd
        edition, section 3.6.
    """

    mean: Float[Array, " d"]
    strength: Array  # number of tasks the mean is worth, positive
    scale: Float[Array, "d d"]  # positive definite
    df: Array  # degrees of freedom, above d - 1

    def __init__(self, mean: Any, strength: Any, scale: Any, df: Any):
        self.mean, self.scale = jnp.asarray(mean, float), jnp.asarray(scale, float)
        d = self.mean.shape[-1]
        if self.scale.shape != (d, d):
            raise ValueError(f"`scale` must have shape {(d, d)}; got {self.scale.shape}.")
        if not isinstance(self.scale, Tracer):
            values = np.linalg.eigvalsh(np.asarray(self.scale))
            if not values[0] > 0:
                raise ValueError(
                    f"`scale` must be positive definite; its least eigenvalue is {values[0]:g}."
                )
        self.strength = _known("strength", strength, 0.0, "positive")
        self.df = _known("df", df, d - 1.0, f"above d - 1 = {d - 1}, as there are {d} weights")

    def expected_kl(self, mean: Any, covariance: Any) -> Scalar:
        """Return `E KL(N(mean, covariance) || N(mu, Sigma))` over this law, in nats."""
        d = len(self.mean)
        tril = jnp.linalg.cholesky(self.scale)
        gap = mean - self.mean
        trace = jnp.trace(cho_solve((tril, True), covariance))
        distance = gap @ cho_solve((tril, True), gap)
        logs = log_det(tril) - jnp.linalg.slogdet(covariance)[1]
        logs += -d * jnp.log(2.0) - _multidigamma(self.df / 2, d) - d
        return (logs + self.df * (trace + distance) + d / self.strength) / 2

    def kl(self, other: NIW) -> Scalar:
        """Return the divergence from this law to another, in nats."""
        d, (n, m) = len(self.mean), (self.df, other.df)
        tril, others = jnp.linalg.cholesky(self.scale), jnp.linalg.cholesky(other.scale)
        gap = self.mean - other.mean
        wishart = m / 2 * (log_det(tril) - log_det(others))
        wishart += multigammaln(m / 2, d) - multigammaln(n / 2, d)
        wishart += (n - m) / 2 * _multidigamma(n / 2, d)
        wishart += n / 2 * (jnp.trace(cho_solve((tril, True), other.scale)) - d)
        ratio = other.strength / self.strength
        normal = d * (ratio - 1 - jnp.log(ratio))
        normal += other.strength * n * (gap @ cho_solve((tril, True), gap))
        return wishart + normal / 2

    @property
    def expected_precision(self) -> Array:
        """`E Sigma^-1`: a matrix, or one number for each weight."""
        return self.df * jnp.linalg.inv(self.scale)

    @property
    def mode(self) -> Array:
        """Sigma where the joint density is highest; of the product variances."""
        return self.scale / (self.df + len(self.mean) + 2)

    @property
    def predictive(self) -> dist.Distribution:
        """Law of the weights of a new task: Student's t."""
        df = self.df - len(self.mean) + 1
        matrix = self.scale * (self.strength + 1) / (self.strength * df)
        return dist.MultivariateStudentT(df, self.mean, jnp.linalg.cholesky(matrix))

    @seeded
    def sample(self, *, key: PRNGKey) -> tuple[Array, Array]:
        """Draw `(mu, Sigma)`; of the product, variances in place of a matrix."""
        key_matrix, key_mean = jr.split(key)
        # Of the precision: numpyro's inverse Wishart by Cholesky factors is of its inverse.
        precision = dist.Wishart(self.df, scale_matrix=jnp.linalg.inv(self.scale))
        sigma = jnp.linalg.inv(jnp.asarray(precision.sample(key_matrix)))
        noise = jr.normal(key_mean, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.linalg.cholesky(sigma / self.strength) @ noise, sigma


class ProductNIW(eqx.Module):
    """The product of one-dimensional laws: `sigma_j^2 ~ IG(df / 2, scale_j / 2)`.

    Given it, `mu_j ~ N(mean_j, sigma_j^2 / strength)`. This, and not an inverse Wishart with
    a diagonal scale, is what few degrees of freedom over many weights can mean.
    """

    mean: Float[Array, " d"]
    strength: Array  # number of tasks the means are worth, positive
    scale: Float[Array, " d"]  # positive
    df: Array  # degrees of freedom of each weight, positive

    def __init__(self, mean: Any, strength: Any, scale: Any, df: Any):
        self.mean, self.scale = jnp.asarray(mean, float), jnp.asarray(scale, float)
        if self.scale.shape != self.mean.shape:
            raise ValueError(
                f"`scale` must have the shape of `mean`, {self.mean.shape}; got "
                f"{self.scale.shape}."
            )
        if not isinstance(self.scale, Tracer) and not np.all(np.asarray(self.scale) > 0):
            raise ValueError(f"`scale` must be positive; got {np.min(self.scale):g}.")
        self.strength = _known("strength", strength, 0.0, "positive")
        self.df = _known("df", df, 0.0, "positive")

    @property
    def each(self) -> NIW:
        """The laws of the weights, stacked."""
        one = lambda mean, scale: NIW(mean[None], self.strength, scale[None, None], self.df)
        return jax.vmap(one)(self.mean, self.scale)

    def expected_kl(self, mean: Any, covariance: Any) -> Scalar:
        """Return `E KL` to the law of the tasks; `covariance` are variances, `(d,)`."""
        args = mean[:, None], covariance[:, None, None]
        return jnp.sum(jax.vmap(NIW.expected_kl)(self.each, *args))

    def kl(self, other: ProductNIW) -> Scalar:
        """Return the divergence from this law to another, in nats."""
        return jnp.sum(jax.vmap(NIW.kl)(self.each, other.each))

    @property
    def expected_precision(self) -> Array:
        """`E Sigma^-1`: a matrix, or one number for each weight."""
        return self.df / self.scale

    @property
    def mode(self) -> Array:
        """Sigma where the joint density is highest; of the product variances."""
        return self.scale / (self.df + 3)

    @property
    def predictive(self) -> dist.Distribution:
        """Law of the weights of a new task: Student's t."""
        variance = self.scale * (self.strength + 1) / (self.strength * self.df)
        return dist.StudentT(self.df, self.mean, jnp.sqrt(variance)).to_event(1)

    @seeded
    def sample(self, *, key: PRNGKey) -> tuple[Array, Array]:
        """Draw `(mu, Sigma)`; of the product, variances in place of a matrix."""
        key_variance, key_mean = jr.split(key)
        gamma = dist.Gamma(self.df / 2, self.scale / 2).sample(key_variance)
        variance = 1 / jnp.asarray(gamma)
        noise = jr.normal(key_mean, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.sqrt(variance / self.strength) * noise, variance


def _multidigamma(x: Array, d: int) -> Array:
    return jnp.sum(digamma(x - jnp.arange(d) / 2))


def _known(name: str, value: Any, above: float, rule: str) -> Array:
    if not isinstance(value, Tracer) and not number(name)(value) > above:
        raise ValueError(f"`{name}` must be {rule}; got {value}.")
    return jnp.asarray(value, float)
