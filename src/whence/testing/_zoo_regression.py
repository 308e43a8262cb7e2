"""Regressions of posteriordb: linear models that differ in priors and design matrices."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ..language._latent import latent
from ..language._model import Model
from ._zoo_types import Columns, Problem

FLAT = dist.ImproperUniform(constraints.real, (), ())
FLAT_POSITIVE = dist.ImproperUniform(constraints.positive, (), ())


class LinearRegression(Model):
    """Linear regression, given the priors of a coefficient and of the noise scale."""

    coefficient: dist.Distribution
    noise: dist.Distribution
    beta: Array = latent(lambda m: m.coefficient, dims="feature")
    sigma: Array = latent(lambda m: m.noise)

    def likelihood(self, x: Float[Array, "data feature"]) -> dist.Distribution:
        return dist.Normal(x @ self.beta, self.sigma)


class CentredRegression(Model):
    """Linear regression on centred covariates, as brms writes it."""

    b: Array = latent(dist.Normal(0.0, 1.0), dims="feature")
    Intercept: Array = latent(dist.StudentT(3.0, 8.0, 10.0))
    sigma: Array = latent(dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))

    def likelihood(self, x: Float[Array, "data feature"]) -> dist.Distribution:
        """Gaussian noise about the linear predictor; the columns of `x` have mean zero."""
        return dist.Normal(self.Intercept + x @ self.b, self.sigma)


Named = dict[str, np.ndarray]


def columns(data: Mapping[str, Any]) -> Named:
    """The data's arrays as float64 by name."""
    return {k: np.asarray(v, np.float64) for k, v in data.items()}


def regression_of(
    response: Callable[[Named], np.ndarray],
    features: Callable[[Named], Named],
    noise: dist.Distribution = FLAT_POSITIVE,
) -> Columns:
    """A regression with flat coefficients, an intercept first, of functions of the columns."""

    def build(data: Mapping[str, Any]) -> Problem:
        c = columns(data)
        y = response(c)
        named = {"1": np.ones_like(y)} | features(c)
        model = LinearRegression(FLAT, noise, coords={"feature": list(named)})
        design = np.stack(list(named.values()), axis=1)
        return Problem(model, jnp.asarray(y), (jnp.asarray(design),))

    return build


def column(name: str) -> Callable[[Named], np.ndarray]:
    """The function that takes a column."""
    return lambda c: c[name]


def _only(*names: str) -> Callable[[Named], Named]:
    return lambda c: {name: c[name] for name in names}


def diamonds(data: Mapping[str, Any]) -> Problem:
    """Prices of diamonds, log scale, on 24 transformed and interacting covariates."""
    c = columns(data)
    x = c["X"][:, 1:]  # the first column is the intercept
    x = x - x.mean(0)
    model = CentredRegression(coords={"feature": x.shape[1]})
    return Problem(model, jnp.asarray(c["Y"]), (jnp.asarray(x),))


def sblri_blr(data: Mapping[str, Any]) -> Problem:
    """Bayesian linear regression on five covariates, simulated."""
    c = columns(data)
    priors = dist.Normal(0.0, 10.0), dist.HalfNormal(10.0)
    model = LinearRegression(*priors, coords={"feature": c["X"].shape[1]})
    return Problem(model, jnp.asarray(c["y"]), (jnp.asarray(c["X"]),))


# Earnings, and their logarithms, on height, sex and their product.
earn_height = regression_of(column("earn"), _only("height"))
logearn_height = regression_of(lambda c: np.log(c["earn"]), _only("height"))
log10earn_height = regression_of(lambda c: np.log10(c["earn"]), _only("height"))
logearn_interaction = regression_of(
    lambda c: np.log(c["earn"]),
    lambda c: _only("height", "male")(c) | {"height_male": c["height"] * c["male"]},
)
logearn_logheight_male = regression_of(
    lambda c: np.log(c["earn"]),
    lambda c: {"log_height": np.log(c["height"]), "male": c["male"]},
)


def kidscore(*names: str) -> Columns:
    """Children's test scores on columns of their mothers', by name."""
    return regression_of(column("kid_score"), _only(*names), dist.HalfCauchy(2.5))


_SCALES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "c": lambda x, middle: x - x.mean(),
    "c2": lambda x, middle: x - middle,
    "z": lambda x, middle: (x - x.mean()) / (2 * x.std(ddof=1)),
}


def kidscore_interaction(variant: str) -> Columns:
    """Children's test scores on mothers' schooling, IQ and their product.

    Args:
        variant: `"c"` centres at the means, `"c2"` at 0.5 and 100, and `"z"` also divides
            by two standard deviations.
    """

    def features(c: Named) -> Named:
        scale = _SCALES[variant]
        h, q = scale(c["mom_hs"], 0.5), scale(c["mom_iq"], 100.0)
        return {"mom_hs": h, "mom_iq": q, "product": h * q}

    return regression_of(column("kid_score"), features)


# Weight of mesquite leaves on the bushes' measurements.
mesquite = regression_of(
    column("weight"),
    _only("diam1", "diam2", "canopy_height", "total_height", "density", "group"),
)


def logmesquite(*names: str) -> Columns:
    """Log weight of mesquite leaves on logarithms of the measurements.

    Args:
        *names: Covariates: `group`, or a measurement or `volume`, `area` or `shape` (of the
            canopy), whose logarithm is meant.
    """

    def features(c: Named) -> Named:
        area = c["diam1"] * c["diam2"]
        more = {
            "area": area,
            "volume": area * c["canopy_height"],
            "shape": c["diam1"] / c["diam2"],
        }
        return {n: c[n] if n == "group" else np.log((c | more)[n]) for n in names}

    return regression_of(lambda c: np.log(c["weight"]), features)


def _voter(c: Named) -> Named:
    ages = {f"age{k}": (c["age_discrete"] == k).astype(float) for k in (2, 3, 4)}
    rest = _only("gender", "income")(c)
    return _only("real_ideo", "race_adj")(c) | ages | {"educ1": c["educ1"]} | rest


# Party identification of voters on what is known of them, one election year.
nes = regression_of(column("partyid7"), _voter)
