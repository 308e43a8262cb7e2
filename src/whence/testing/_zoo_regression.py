"""Regressions of posteriordb: linear models that differ in priors and design matrices."""

from collections.abc import Mapping
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


class FlatRegression(Model):
    """Linear regression with flat priors on the coefficients and the noise scale."""

    beta: Array = latent(FLAT, dims="feature")
    sigma: Array = latent(FLAT_POSITIVE)

    def likelihood(self, x: Float[Array, "data feature"]) -> dist.Distribution:
        return dist.Normal(x @ self.beta, self.sigma)


class HalfCauchyRegression(Model):
    """Linear regression with flat coefficients and a half-Cauchy noise scale."""

    beta: Array = latent(FLAT, dims="feature")
    sigma: Array = latent(dist.HalfCauchy(2.5))

    def likelihood(self, x: Float[Array, "data feature"]) -> dist.Distribution:
        return dist.Normal(x @ self.beta, self.sigma)


class GaussianRegression(Model):
    """Linear regression with weak Gaussian priors."""

    beta: Array = latent(dist.Normal(0.0, 10.0), dims="feature")
    sigma: Array = latent(dist.HalfNormal(10.0))

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


def columns(data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The data's arrays as float64 by name."""
    return {k: np.asarray(v, np.float64) for k, v in data.items()}


def regression(cls: type[Model], response: np.ndarray, **features: np.ndarray) -> Problem:
    """A regression of `response` on `features`, an intercept first.

    Args:
        cls: A model with a coefficient for each `feature`.
        response: Shape `(data,)`.
        **features: Covariates of shape `(data,)` by name.

    Returns:
        The model with its data.
    """
    features = {"1": np.ones_like(response)} | features
    model = cls(coords={"feature": list(features)})
    design = np.stack(list(features.values()), axis=1)
    return Problem(model, jnp.asarray(response), (jnp.asarray(design),))


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
    model = GaussianRegression(coords={"feature": c["X"].shape[1]})
    return Problem(model, jnp.asarray(c["y"]), (jnp.asarray(c["X"]),))


def earn_height(data: Mapping[str, Any]) -> Problem:
    """Earnings on height."""
    c = columns(data)
    return regression(FlatRegression, c["earn"], height=c["height"])


def logearn_height(data: Mapping[str, Any]) -> Problem:
    """Log earnings on height."""
    c = columns(data)
    return regression(FlatRegression, np.log(c["earn"]), height=c["height"])


def log10earn_height(data: Mapping[str, Any]) -> Problem:
    """Decimal log earnings on height."""
    c = columns(data)
    return regression(FlatRegression, np.log10(c["earn"]), height=c["height"])


def logearn_interaction(data: Mapping[str, Any]) -> Problem:
    """Log earnings on height, sex and their product."""
    c = columns(data)
    h, m = c["height"], c["male"]
    return regression(FlatRegression, np.log(c["earn"]), height=h, male=m, height_male=h * m)


def logearn_logheight_male(data: Mapping[str, Any]) -> Problem:
    """Log earnings on log height and sex."""
    c = columns(data)
    return regression(
        FlatRegression, np.log(c["earn"]), log_height=np.log(c["height"]), male=c["male"]
    )


def kidscore(*names: str) -> Columns:
    """Children's test scores on columns of their mothers', by name."""

    def build(data: Mapping[str, Any]) -> Problem:
        c = columns(data)
        chosen = {name: c[name] for name in names}
        return regression(HalfCauchyRegression, c["kid_score"], **chosen)

    return build


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean()


def _standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / (2 * x.std(ddof=1))


def kidscore_interaction(variant: str) -> Columns:
    """Children's test scores on mothers' schooling, IQ and their product.

    Args:
        variant: `"c"` centres at the means, `"c2"` at 0.5 and 100, and `"z"` also divides
            by two standard deviations.
    """

    def build(data: Mapping[str, Any]) -> Problem:
        c = columns(data)
        h, q = c["mom_hs"], c["mom_iq"]
        if variant == "c":
            h, q = _centred(h), _centred(q)
        elif variant == "c2":
            h, q = h - 0.5, q - 100.0
        else:
            h, q = _standardised(h), _standardised(q)
        return regression(FlatRegression, c["kid_score"], mom_hs=h, mom_iq=q, product=h * q)

    return build


def mesquite(data: Mapping[str, Any]) -> Problem:
    """Weight of mesquite leaves on the bushes' measurements."""
    c = columns(data)
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    return regression(FlatRegression, c["weight"], **{name: c[name] for name in names})


def logmesquite(*names: str) -> Columns:
    """Log weight of mesquite leaves on logarithms of the measurements.

    Args:
        *names: Covariates: `group`, or a measurement or `volume`, `area` or `shape` (of the
            canopy), whose logarithm is meant.
    """

    def build(data: Mapping[str, Any]) -> Problem:
        c = columns(data)
        c["area"] = c["diam1"] * c["diam2"]
        c["volume"] = c["area"] * c["canopy_height"]
        c["shape"] = c["diam1"] / c["diam2"]
        chosen = {n: c[n] if n == "group" else np.log(c[n]) for n in names}
        return regression(FlatRegression, np.log(c["weight"]), **chosen)

    return build


def nes(data: Mapping[str, Any]) -> Problem:
    """Party identification of voters on what is known of them, one election year."""
    c = columns(data)
    ages = {f"age{k}": (c["age_discrete"] == k).astype(float) for k in (2, 3, 4)}
    return regression(
        FlatRegression,
        c["partyid7"],
        real_ideo=c["real_ideo"],
        race_adj=c["race_adj"],
        **ages,
        educ1=c["educ1"],
        gender=c["gender"],
        income=c["income"],
    )
