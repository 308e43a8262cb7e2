"""Twelve models of the size people wait for, with data simulated by a fixed seed.

Hierarchies, regressions and time series of 3 to 805 latents. Each is a `whence.Model`;
`_medium_pymc.py` has the same models written by hand in PyMC, under the same names.
`make(name)` returns model, observed data and inputs as a `Problem`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import whence as wh
from whence.testing import Problem
from whence.testing._ordered import OrderedNormal


class Hierarchy(wh.Model):
    """Intercepts and slopes of 400 groups, 12,000 rows; 805 latents."""

    mu_a: Any = wh.latent(dist.Normal(0.0, 5.0))
    tau_a: Any = wh.latent(dist.HalfNormal(1.0))
    a: Any = wh.latent(lambda m: dist.Normal(m.mu_a, m.tau_a), dims="group", noncentered=True)
    mu_b: Any = wh.latent(dist.Normal(0.0, 5.0))
    tau_b: Any = wh.latent(dist.HalfNormal(1.0))
    b: Any = wh.latent(lambda m: dist.Normal(m.mu_b, m.tau_b), dims="group", noncentered=True)
    sigma: Any = wh.latent(dist.HalfNormal(2.0))

    def likelihood(self, group, x):
        return dist.Normal(self.a[group] + self.b[group] * x, self.sigma)


def hierarchy():
    rng = np.random.default_rng(20)
    group, x = rng.integers(0, 400, 12_000), rng.normal(size=12_000)
    a, b = 1.2 + 0.5 * rng.normal(size=400), -0.6 + 0.3 * rng.normal(size=400)
    y = a[group] + b[group] * x + 0.8 * rng.normal(size=12_000)
    return Problem(Hierarchy(coords={"group": 400}), y, (group, x))


class Crossed(wh.Model):
    """Poisson counts with two crossed effects, of 250 and 122 levels; 376 latents."""

    intercept: Any = wh.latent(dist.Normal(0.0, 3.0))
    slope: Any = wh.latent(dist.Normal(0.0, 1.0))
    tau_a: Any = wh.latent(dist.HalfNormal(1.0))
    a: Any = wh.latent(lambda m: dist.Normal(0.0, m.tau_a), dims="left", noncentered=True)
    tau_b: Any = wh.latent(dist.HalfNormal(1.0))
    b: Any = wh.latent(lambda m: dist.Normal(0.0, m.tau_b), dims="right", noncentered=True)

    def likelihood(self, left, right, x):
        return dist.Poisson(
            jnp.exp(self.intercept + self.slope * x + self.a[left] + self.b[right])
        )


def crossed():
    rng = np.random.default_rng(21)
    left, right = rng.integers(0, 250, 5_000), rng.integers(0, 122, 5_000)
    x = rng.normal(size=5_000)
    a, b = 0.4 * rng.normal(size=250), 0.6 * rng.normal(size=122)
    y = rng.poisson(np.exp(1.0 + 0.2 * x + a[left] + b[right]))
    return Problem(Crossed(coords={"left": 250, "right": 122}), y, (left, right, x))


class Items(wh.Model):
    """Item response with discriminations, 400 persons and 30 items; 460 latents."""

    ability: Any = wh.latent(dist.Normal(0.0, 1.0), dims="person")
    difficulty: Any = wh.latent(dist.Normal(0.0, 2.0), dims="item")
    discrimination: Any = wh.latent(dist.LogNormal(0.0, 0.5), dims="item")

    def likelihood(self, person, item):
        gap = self.ability[person] - self.difficulty[item]
        return dist.Bernoulli(logits=self.discrimination[item] * gap)


def items():
    rng = np.random.default_rng(22)
    person, item = np.repeat(np.arange(400), 30), np.tile(np.arange(30), 400)
    ability, difficulty = rng.normal(size=400), 1.2 * rng.normal(size=30)
    gap = rng.lognormal(0.0, 0.3, 30)[item] * (ability[person] - difficulty[item])
    y = rng.binomial(1, 1.0 / (1.0 + np.exp(-gap)))
    return Problem(Items(coords={"person": 400, "item": 30}), y, (person, item))


class Counts(wh.Model):
    """Negative-binomial regression on 30 covariates; 32 latents."""

    intercept: Any = wh.latent(dist.Normal(0.0, 3.0))
    beta: Any = wh.latent(dist.Normal(0.0, 1.0), dims="covariate")
    concentration: Any = wh.latent(dist.Gamma(2.0, 0.1))

    def likelihood(self, x):
        return dist.NegativeBinomial2(
            jnp.exp(self.intercept + x @ self.beta), self.concentration
        )


def counts():
    rng = np.random.default_rng(23)
    x = rng.normal(size=(2_000, 30)) + 0.5 * rng.normal(size=(2_000, 1))
    mean = np.exp(1.5 + x @ (0.15 * rng.normal(size=30)))
    y = rng.poisson(mean * rng.gamma(3.0, 1.0 / 3.0, 2_000))
    return Problem(Counts(coords={"covariate": 30}), y, (x,))


class Horseshoe(wh.Model):
    """The regularised horseshoe, 100 rows and 100 coefficients; 203 latents.

    References:
        Piironen and Vehtari (2017), Sparsity information and regularization in the horseshoe
        and other shrinkage priors, doi:10.1214/17-EJS1337SI.
    """

    sigma: Any = wh.latent(dist.HalfNormal(2.0))
    tau: Any = wh.latent(lambda m: dist.HalfCauchy(0.005 * m.sigma))
    slab: Any = wh.latent(dist.InverseGamma(2.0, 8.0))
    local: Any = wh.latent(dist.HalfCauchy(1.0), dims="covariate")
    beta: Any = wh.latent(
        lambda m: dist.Normal(0.0, m.tau * m.shrunk()), dims="covariate", noncentered=True
    )

    def shrunk(self):
        return jnp.sqrt(self.slab * self.local**2 / (self.slab + self.tau**2 * self.local**2))

    def likelihood(self, x):
        return dist.Normal(x @ self.beta, self.sigma)


def horseshoe():
    rng = np.random.default_rng(24)
    x = rng.normal(size=(100, 100))
    beta = np.concatenate([[3.0, -2.5, 2.0, -1.5, 1.0], np.zeros(95)])
    y = x @ beta + rng.normal(size=100)
    return Problem(Horseshoe(coords={"covariate": 100}), y, (x,))


class LogisticRegression(wh.Model):
    """Logistic regression of 20,000 rows on 50 covariates; 51 latents."""

    intercept: Any = wh.latent(dist.Normal(0.0, 3.0))
    beta: Any = wh.latent(dist.Normal(0.0, 1.0), dims="covariate")

    def likelihood(self, x):
        return dist.Bernoulli(logits=self.intercept + x @ self.beta)


def logistic_regression():
    rng = np.random.default_rng(25)
    x = rng.normal(size=(20_000, 50)) + 0.4 * rng.normal(size=(20_000, 1))
    logits = -0.5 + x @ (0.3 * rng.normal(size=50))
    y = rng.binomial(1, 1.0 / (1.0 + np.exp(-logits)))
    return Problem(LogisticRegression(coords={"covariate": 50}), y, (x,))


class GaussianProcess(wh.Model):
    """Regression by a Gaussian process at 200 points, the function summed out; 3 latents."""

    length: Any = wh.latent(dist.InverseGamma(5.0, 5.0))
    amplitude: Any = wh.latent(dist.HalfNormal(2.0))
    noise: Any = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self, square):
        kernel = self.amplitude**2 * jnp.exp(-0.5 * square / self.length**2)
        nugget = (self.noise**2 + 1e-6) * jnp.eye(len(square))
        return dist.MultivariateNormal(jnp.zeros(len(square)), kernel + nugget)


def gaussian_process():
    rng = np.random.default_rng(26)
    x = np.sort(rng.uniform(0.0, 10.0, 200))
    y = np.sin(1.5 * x) + 0.5 * np.cos(4.0 * x) + 0.3 * rng.normal(size=200)
    return Problem(GaussianProcess(), y, ((x[:, None] - x) ** 2,))


class Ordinal(wh.Model):
    """Ordinal regression, six categories, ten covariates; 15 latents."""

    beta: Any = wh.latent(dist.Normal(0.0, 1.0), dims="covariate")
    cut: Any = wh.latent(lambda m: OrderedNormal(jnp.zeros(5), 5.0), dims="level")

    def likelihood(self, x):
        return dist.OrderedLogistic(x @ self.beta, self.cut)


def ordinal():
    rng = np.random.default_rng(27)
    x = rng.normal(size=(2_000, 10))
    score = x @ (0.5 * rng.normal(size=10)) + rng.logistic(size=2_000)
    y = np.searchsorted([-2.0, -0.8, 0.1, 1.0, 2.5], score)
    return Problem(Ordinal(coords={"covariate": 10, "level": 5}), y, (x,))


class Volatility(wh.Model):
    """Stochastic volatility over 500 times, by standardised shocks; 503 latents."""

    mu: Any = wh.latent(dist.Normal(0.0, 2.0))
    persistence: Any = wh.latent(dist.Beta(20.0, 1.5))
    sigma: Any = wh.latent(dist.HalfNormal(0.5))
    shock: Any = wh.latent(dist.Normal(0.0, 1.0), dims="time")

    def likelihood(self):
        phi = 2.0 * self.persistence - 1.0
        first = self.sigma / jnp.sqrt(1.0 - phi**2) * self.shock[0]

        def step(h, shock):
            h = phi * h + self.sigma * shock
            return h, h

        later = jax.lax.scan(step, first, self.shock[1:])[1]
        h = self.mu + jnp.concatenate([first[None], later])
        return dist.Normal(0.0, jnp.exp(0.5 * h))


def volatility():
    rng = np.random.default_rng(28)
    h, path = 0.0, []
    for shock in rng.normal(size=500):
        h = 0.95 * h + 0.25 * shock
        path.append(h)
    y = np.exp(0.5 * (-1.0 + np.array(path))) * rng.normal(size=500)
    return Problem(Volatility(coords={"time": 500}), y, ())


class Clinics(wh.Model):
    """Logistic regression with an effect of each of 200 clinics; 207 latents."""

    intercept: Any = wh.latent(dist.Normal(0.0, 3.0))
    beta: Any = wh.latent(dist.Normal(0.0, 1.0), dims="covariate")
    tau: Any = wh.latent(dist.HalfNormal(1.0))
    effect: Any = wh.latent(lambda m: dist.Normal(0.0, m.tau), dims="clinic", noncentered=True)

    def likelihood(self, clinic, x):
        return dist.Bernoulli(logits=self.intercept + x @ self.beta + self.effect[clinic])


def clinics():
    rng = np.random.default_rng(29)
    clinic, x = rng.integers(0, 200, 5_000), rng.normal(size=(5_000, 5))
    logits = (
        -0.7 + x @ np.array([0.5, -0.3, 0.2, 0.0, 0.1]) + 0.8 * rng.normal(size=200)[clinic]
    )
    y = rng.binomial(1, 1.0 / (1.0 + np.exp(-logits)))
    return Problem(Clinics(coords={"clinic": 200, "covariate": 5}), y, (clinic, x))


class Garch(wh.Model):
    """GARCH(1, 1) over 1,000 times, stationary; 4 latents."""

    mu: Any = wh.latent(dist.Normal(0.0, 1.0))
    base: Any = wh.latent(dist.HalfNormal(1.0))
    react: Any = wh.latent(dist.Uniform(0.0, 1.0))
    share: Any = wh.latent(dist.Uniform(0.0, 1.0))

    def likelihood(self, previous):
        keep = (1.0 - self.react) * self.share
        shocks = self.base + self.react * (previous - self.mu) ** 2

        def step(variance, shock):
            variance = shock + keep * variance
            return variance, variance

        first = jnp.ones_like(self.mu)
        later = jax.lax.scan(step, first, shocks)[1]
        return dist.Normal(self.mu, jnp.sqrt(jnp.concatenate([first[None], later])))


def garch():
    rng = np.random.default_rng(30)
    variance, y = 1.0, []
    for e in rng.normal(size=1_000):
        y.append(0.1 + np.sqrt(variance) * e)
        variance = 0.1 + 0.15 * (y[-1] - 0.1) ** 2 + 0.75 * variance
    return Problem(Garch(), np.array(y), (np.array(y[:-1]),))


class Robust(wh.Model):
    """A regression with Student-t errors and 80 group intercepts; 87 latents."""

    mu: Any = wh.latent(dist.Normal(0.0, 5.0))
    tau: Any = wh.latent(dist.HalfNormal(2.0))
    a: Any = wh.latent(lambda m: dist.Normal(m.mu, m.tau), dims="group", noncentered=True)
    beta: Any = wh.latent(dist.Normal(0.0, 2.0), dims="covariate")
    sigma: Any = wh.latent(dist.HalfNormal(2.0))
    nu: Any = wh.latent(dist.Gamma(2.0, 0.1))

    def likelihood(self, group, x):
        return dist.StudentT(self.nu, self.a[group] + x @ self.beta, self.sigma)


def robust():
    rng = np.random.default_rng(31)
    group, x = rng.integers(0, 80, 4_000), rng.normal(size=(4_000, 3))
    mean = (2.0 + 0.7 * rng.normal(size=80))[group] + x @ np.array([1.0, -0.5, 0.2])
    y = mean + 0.6 * rng.standard_t(4, 4_000)
    return Problem(Robust(coords={"group": 80, "covariate": 3}), y, (group, x))


MODELS = {
    "hierarchy": hierarchy,
    "crossed_poisson": crossed,
    "item_response": items,
    "negative_binomial": counts,
    "horseshoe": horseshoe,
    "logistic": logistic_regression,
    "gaussian_process": gaussian_process,
    "ordinal": ordinal,
    "volatility": volatility,
    "clinics": clinics,
    "garch": garch,
    "robust": robust,
}


def make(name: str) -> Problem:
    """Return model, observed data and inputs.

    Args:
        name: One of `MODELS`.

    Raises:
        ValueError: If there is no such model.
    """
    if name not in MODELS:
        raise ValueError(f"`name` must be one of {', '.join(MODELS)}; got {name!r}.")
    return MODELS[name]()
