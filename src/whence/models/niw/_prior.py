"""The law of a new task's weights, from what is known of the population."""

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array

from ...core._types import Scalar
from ._covariance import Weights
from ._meta import NIWMeta, Population, Scales, grid_of
from ._objective import log_prior_of

PRIORS = ("expected_precision", "mode", "predictive_t")


def prior_for(meta: NIWMeta, prior: str) -> tuple[Population, Scales, float | None]:
    """Return components and scales of the prior, and the degrees of freedom of each weight.

    With `V0 = df S` and S what was learned, `E[Sigma^-1]^-1` is S; the mode of the joint law
    `V0 / (df + d + 2)`, of the product `V0 / (df + 3)`; and the predictive law Student's t
    with `df - d + 1` degrees of freedom and scale matrix `V0 (strength + 1) / (strength (df -
    d + 1))`, of the product one such law, with d = 1, for each weight.

    Raises:
        ValueError: If the model does not say `df`, or a product is asked for that has none.
    """
    if prior == "expected_precision":
        return meta.population, meta.scales, None
    df, strength, d = meta.df, meta.strength, meta.num_weights
    if df is None or strength is None:
        raise ValueError(
            f"`prior={prior!r}` needs the degrees of freedom of the law: `NIWMeta(..., df=)`, "
            "about the number of tasks learned from."
        )
    if prior == "mode":
        factor = df / (df + 3) if meta.is_product else df / (df + d + 2)
        return _scaled(meta.population, factor), meta.scales, None
    if meta.scales.values.shape != (1,) or len(meta.population.log_weights) > 1:
        raise ValueError(
            "`prior='predictive_t'` needs a model with one component and without `tails`."
        )
    more = (strength + 1) / strength
    if meta.is_product:
        return _scaled(meta.population, more), meta.scales, df
    left = df - d + 1
    dtype = meta.population.mean.dtype
    return _scaled(meta.population, df * more / left), grid_of(left, dtype), None


def log_prior(
    weights: Weights, population: Population, scales: Scales, df: float | None
) -> Scalar:
    """Return the log density of a task's weights, up to a constant."""

    def normal(mean, covariance):
        one = lambda c: -(c.quadratic(weights - mean) + c.log_det) / 2
        return jax.vmap(lambda v: one(covariance.scaled(v)))(scales.values)

    if df is None:
        each = jax.vmap(normal)(population.mean, population.covariance)
        return jax.nn.logsumexp(log_prior_of(population, scales) + each)
    log_precision = population.covariance.log_precision[0]  # pyright: ignore
    z2 = jnp.exp(log_precision) * (weights - population.mean[0]) ** 2
    one = gammaln((df + 1) / 2) - gammaln(df / 2) - (df + 1) / 2 * jnp.log1p(z2 / df)
    return jnp.sum(one + log_precision / 2)


def reweighted(population: Population, square: Array, df: float) -> Population:
    """Return the normal prior that stands for independent t at second moments of q.

    A t is a normal with precision times w, `w ~ Gamma(df / 2, df / 2)`; given the second
    moment `square` of a weight about its mean, `E[w] = (df + 1) / (df + square / S)`.
    """
    covariance = population.covariance
    log_precision = covariance.log_precision  # pyright: ignore
    w = (df + 1) / (df + square[None] * jnp.exp(log_precision))
    scaled = type(covariance)(log_precision + jnp.log(w))  # pyright: ignore
    return Population(population.log_weights, population.mean, scaled)


def _scaled(population: Population, factor: float) -> Population:
    by = jnp.asarray(factor, population.mean.dtype)
    covariance = jax.vmap(lambda c: c.scaled(by))(population.covariance)
    return Population(population.log_weights, population.mean, covariance)
