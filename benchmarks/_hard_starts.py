"""Models whose usual starts lie far from the posterior, each with data made by a fixed seed.

A start uniform on (-2, 2) in unconstrained space suits standardised data. Here are the
problems it does not suit: raw units, paths that explode, mass at the edge of the support,
differential equations, mixtures, funnels, large counts, outliers, and densities of -1e30 to
-1e60 at the start. `make(name)` returns model, observed data and inputs as a `Problem`.

The posteriors are proper and, save where `SEVERAL_MODES` says so, have one mode that
matters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import whence as wh
from whence.testing import Problem
from whence.testing._ordered import OrderedNormal

# -- scale and units ---------------------------------------------------------------


class Incomes(wh.Model):
    """Incomes in dollars."""

    mu: Any = wh.latent(dist.Normal(30_000.0, 10_000.0))
    sigma: Any = wh.latent(dist.HalfNormal(10_000.0))

    def likelihood(self):
        return dist.Normal(self.mu, self.sigma)


class IncomesNoncentered(wh.Model):
    """The same, the mean in units of its prior."""

    mu: Any = wh.latent(dist.Normal(30_000.0, 10_000.0), noncentered=True)
    sigma: Any = wh.latent(dist.HalfNormal(10_000.0))

    def likelihood(self):
        return dist.Normal(self.mu, self.sigma)


def incomes(model):
    rng = np.random.default_rng(0)
    return Problem(model, rng.normal(32_000.0, 9_000.0, 50), ())


class Survival(wh.Model):
    """Weibull survival times in days, some of them censored."""

    a: Any = wh.latent(dist.Normal(5.0, 2.0))
    b: Any = wh.latent(dist.Normal(0.0, 1.0))
    k: Any = wh.latent(dist.LogNormal(0.0, 0.5))

    def likelihood(self, event, age):
        weibull = dist.Weibull(jnp.exp(self.a + self.b * age), self.k)
        return dist.RightCensoredDistribution(weibull, censored=1 - event)


def survival():
    rng = np.random.default_rng(0)
    age = rng.normal(size=69)
    age = (age - age.mean()) / age.std()
    days = np.floor(rng.weibull(0.6, 69) * np.exp(5.5 - 0.4 * age)) + 0.5
    cut = rng.uniform(50, 1800, 69)
    event = (days <= cut).astype(int)
    return Problem(Survival(), np.minimum(days, cut), (event, age))


class Metres(wh.Model):
    """Radii of the Earth in metres."""

    mu: Any = wh.latent(dist.Normal(0.0, 1e7))
    sigma: Any = wh.latent(dist.HalfNormal(1e5))

    def likelihood(self):
        return dist.Normal(self.mu, self.sigma)


def metres():
    rng = np.random.default_rng(1)
    return Problem(Metres(), rng.normal(6.371e6, 8e3, 40), ())


class Micrograms(wh.Model):
    """Masses of a few micrograms, in grams."""

    mu: Any = wh.latent(dist.Normal(0.0, 1e-5))
    sigma: Any = wh.latent(dist.HalfNormal(1e-6))

    def likelihood(self):
        return dist.Normal(self.mu, self.sigma)


def micrograms():
    rng = np.random.default_rng(2)
    return Problem(Micrograms(), rng.normal(3e-6, 4e-7, 30), ())


class RawCovariates(wh.Model):
    """A linear regression on the calendar year and an income in dollars, as they are."""

    intercept: Any = wh.latent(dist.Normal(0.0, 1_000.0))
    year: Any = wh.latent(dist.Normal(0.0, 1.0))
    income: Any = wh.latent(dist.Normal(0.0, 0.01))
    sigma: Any = wh.latent(dist.HalfNormal(10.0))

    def likelihood(self, years, incomes):
        mean = self.intercept + self.year * years + self.income * incomes
        return dist.Normal(mean, self.sigma)


def raw_covariates():
    rng = np.random.default_rng(3)
    year = rng.integers(1950, 2021, 200).astype(float)
    income = rng.lognormal(10.3, 0.5, 200).round()
    y = 60.0 + 0.2 * (year - 1985) + 2e-4 * (income - 30_000) + 4.0 * rng.normal(size=200)
    return Problem(RawCovariates(), y, (year, income))


# -- explosion ---------------------------------------------------------------------


class Filter(wh.Model):
    """A second-order linear filter of a known signal; it explodes for most coefficients."""

    phi: Any = wh.latent(dist.Normal(0.0, 1.0), dims="lag", shape=2)
    gain: Any = wh.latent(dist.Normal(0.0, 1.0))
    sigma: Any = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self, signal):
        def step(state, u):
            new = self.phi[0] * state[0] + self.phi[1] * state[1] + self.gain * u
            return (new, state[0]), new

        zero = jnp.zeros_like(self.gain)
        path = jax.lax.scan(step, (zero, zero), signal)[1]
        return dist.Normal(path, self.sigma)


def linear_filter():
    rng = np.random.default_rng(4)
    signal, path = rng.normal(size=150), [0.0, 0.0]
    for u in signal:
        path.append(0.5 * path[-1] + 0.3 * path[-2] + 0.8 * u)
    y = np.array(path[2:]) + 0.3 * rng.normal(size=150)
    return Problem(Filter(coords={"lag": 2}), y, (signal,))


class QuadraticMap(wh.Model):
    """A driven quadratic recursion, of double-exponential growth outside a small region."""

    level: Any = wh.latent(dist.Normal(0.0, 1.0))
    linear: Any = wh.latent(dist.Normal(0.0, 1.0))
    square: Any = wh.latent(dist.Normal(0.0, 0.5))
    sigma: Any = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self, signal):
        def step(x, u):
            x = self.level + self.linear * x + self.square * x**2 + u
            return x, x

        path = jax.lax.scan(step, jnp.zeros_like(self.level), signal)[1]
        return dist.Normal(path, self.sigma)


def quadratic_map():
    rng = np.random.default_rng(5)
    signal, x, path = 0.5 * rng.normal(size=60), 0.0, []
    for u in signal:
        x = 0.2 + 0.4 * x - 0.1 * x**2 + u
        path.append(x)
    y = np.array(path) + 0.2 * rng.normal(size=60)
    return Problem(QuadraticMap(), y, (signal,))


class Epidemic(wh.Model):
    """Counts that grow exponentially in time, in days."""

    level: Any = wh.latent(dist.Normal(0.0, 5.0))
    rate: Any = wh.latent(dist.Normal(0.0, 1.0))
    concentration: Any = wh.latent(dist.LogNormal(2.0, 1.0))

    def likelihood(self, day):
        mean = jnp.exp(self.level + self.rate * day)
        return dist.NegativeBinomial2(mean, self.concentration)


def epidemic():
    rng = np.random.default_rng(6)
    day = np.arange(90.0)
    mean = np.exp(1.0 + 0.09 * day)
    y = rng.poisson(mean * rng.gamma(10.0, 0.1, 90))
    return Problem(Epidemic(), y, (day,))


class PoissonGrowth(wh.Model):
    """The same with Poisson counts, quadratic in time."""

    level: Any = wh.latent(dist.Normal(0.0, 5.0))
    rate: Any = wh.latent(dist.Normal(0.0, 1.0))
    bend: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, day):
        trend = self.level + self.rate * day + self.bend * (day / 10.0) ** 2
        return dist.Poisson(jnp.exp(trend))


def poisson_growth():
    rng = np.random.default_rng(7)
    day = np.arange(60.0)
    y = rng.poisson(np.exp(2.0 + 0.2 * day - 0.1 * (day / 10) ** 2))
    return Problem(PoissonGrowth(), y, (day,))


# -- edges of the support ----------------------------------------------------------


class RareEvents(wh.Model):
    """Probabilities of events that were seen rarely or never."""

    p: Any = wh.latent(dist.Beta(0.5, 0.5), dims="kind", shape=4)

    def likelihood(self, trials):
        return dist.Binomial(trials, probs=self.p)


def rare_events():
    trials = np.array([5_000, 20_000, 100_000, 1_000])
    return Problem(RareEvents(coords={"kind": 4}), np.array([0, 1, 3, 1_000]), (trials,))


class Composition(wh.Model):
    """Shares of ten kinds, nearly all of them one."""

    share: Any = wh.latent(lambda m: dist.Dirichlet(jnp.full(10, 0.5)), dims="kind")

    def likelihood(self):
        return dist.Multinomial(total_count=50_000, probs=self.share)


def composition():
    counts = np.array([3, 0, 1, 49_600, 380, 0, 12, 0, 4, 0])
    return Problem(Composition(coords={"kind": 10}), counts, ())


class Efficiency(wh.Model):
    """A share and a level in intervals, with data that want them at the ends."""

    share: Any = wh.latent(dist.Uniform(0.0, 1.0))
    level: Any = wh.latent(dist.Uniform(100.0, 10_000.0))
    sigma: Any = wh.latent(dist.HalfNormal(10.0))

    def likelihood(self):
        return {
            "ratio": dist.Normal(self.share, 0.01),
            "output": dist.Normal(self.level, self.sigma),
        }


def efficiency():
    rng = np.random.default_rng(8)
    y = {"ratio": 1.001 + 0.01 * rng.normal(size=200), "output": 100 + rng.normal(size=50)}
    return Problem(Efficiency(), y, ())


class Ratings(wh.Model):
    """Ordered categories by age in years: cutpoints far from zero and close together."""

    slope: Any = wh.latent(dist.Normal(0.0, 1.0))
    cut: Any = wh.latent(lambda m: OrderedNormal(jnp.zeros(6), 20.0), dims="step")

    def likelihood(self, age):
        return dist.OrderedLogistic(self.slope * age, self.cut)


def ratings():
    rng = np.random.default_rng(9)
    age = rng.integers(18, 90, 300).astype(float)
    score = 0.15 * age + rng.logistic(size=300)
    y = np.searchsorted([4.0, 6.0, 8.0, 9.0, 10.0, 13.0], score)
    return Problem(Ratings(coords={"step": 6}), y, (age,))


# -- differential equations --------------------------------------------------------


def runge_kutta(slope, start, step, steps, every):
    """Return the states after `every` steps each, by the classical method."""

    def one(_, z):
        move = lambda k, h: jax.tree.map(lambda a, b: a + h * b, z, k)
        k1 = slope(z)
        k2 = slope(move(k1, step / 2))
        k3 = slope(move(k2, step / 2))
        k4 = slope(move(k3, step))
        return jax.tree.map(
            lambda x, a, b, c, d: x + step / 6 * (a + 2 * b + 2 * c + d), z, k1, k2, k3, k4
        )

    def several(z, _):
        for _ in range(every):
            z = one(_, z)
        return z, z

    return jax.lax.scan(several, start, None, length=steps // every)[1]


class Predation(wh.Model):
    """Predators and prey in thousands, by Runge and Kutta's method with fixed steps."""

    rates: Any = wh.latent(dist.LogNormal(-1.0, 1.0), dims="rate", shape=4)
    first: Any = wh.latent(dist.LogNormal(2.3, 1.0), dims="species", shape=2)
    sigma: Any = wh.latent(dist.LogNormal(-1.0, 1.0))

    def likelihood(self):
        a, b, c, d = self.rates

        def slope(z):
            prey, predator = z
            return a * prey - b * prey * predator, -c * predator + d * prey * predator

        path = runge_kutta(slope, (self.first[0], self.first[1]), 0.25, 64, 4)
        return dist.Normal(jnp.stack(path, -1), 10 * self.sigma)


def predation():
    rng = np.random.default_rng(10)
    z, path = np.array([30.0, 4.0]), []
    slope = lambda z: np.array(
        [0.55 * z[0] - 0.028 * z[0] * z[1], -0.8 * z[1] + 0.024 * z[0] * z[1]]
    )
    for _ in range(16):
        for _ in range(100):
            k = slope(z)
            z = z + 0.01 * slope(z + 0.005 * k)
        path.append(z)
    y = np.array(path) + 3.0 * rng.normal(size=(16, 2))
    return Problem(Predation(coords={"rate": 4, "species": 2}), y, ())


class Flu(wh.Model):
    """A boarding school's epidemic of influenza: susceptible, infected, recovered."""

    contact: Any = wh.latent(dist.LogNormal(0.0, 1.0))
    recovery: Any = wh.latent(dist.LogNormal(0.0, 1.0))
    concentration: Any = wh.latent(dist.Exponential(0.1))

    def likelihood(self):
        def slope(z):
            s, i = z
            new = self.contact * s * i / 763.0
            return -new, new - self.recovery * i

        one = jnp.ones_like(self.contact)
        infected = runge_kutta(slope, (762.0 * one, one), 0.25, 56, 4)[1]
        return dist.NegativeBinomial2(infected + 1e-3, self.concentration)


def flu():
    y = np.array([3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4])
    return Problem(Flu(), y, ())


class Logistic(wh.Model):
    """Logistic growth to a capacity in the thousands, explicit steps that may explode."""

    rate: Any = wh.latent(dist.LogNormal(0.0, 1.0))
    capacity: Any = wh.latent(dist.Normal(5_000.0, 2_000.0))
    first: Any = wh.latent(dist.LogNormal(3.0, 1.0))
    sigma: Any = wh.latent(dist.HalfNormal(100.0))

    def likelihood(self):
        slope = lambda n: self.rate * n * (1.0 - n / self.capacity)
        return dist.Normal(runge_kutta(slope, self.first, 0.5, 40, 2), self.sigma)


def logistic():
    rng = np.random.default_rng(11)
    time = np.arange(1.0, 21.0)
    mean = 4_000.0 / (1.0 + (4_000.0 / 20.0 - 1.0) * np.exp(-0.6 * time))
    return Problem(Logistic(), mean + 40.0 * rng.normal(size=20), ())


# -- mixtures and hierarchies ------------------------------------------------------


class Mixture(wh.Model):
    """Two normals in increasing order, on the scale of the data."""

    mu: Any = wh.latent(lambda m: OrderedNormal([0.0, 0.0], 100.0), dims="component")
    sigma: Any = wh.latent(dist.HalfNormal(20.0), dims="component", shape=2)
    theta: Any = wh.latent(dist.Beta(5.0, 5.0))

    def likelihood(self):
        weights = dist.Categorical(probs=jnp.stack([self.theta, 1.0 - self.theta]))
        return dist.MixtureSameFamily(weights, dist.Normal(self.mu, self.sigma))


def mixture():
    rng = np.random.default_rng(12)
    y = np.concatenate([rng.normal(40.0, 6.0, 120), rng.normal(90.0, 10.0, 80)])
    return Problem(Mixture(coords={"component": 2}), y, ())


class Schools(wh.Model):
    """Rubin's eight schools, as they are written first."""

    mu: Any = wh.latent(dist.Normal(0.0, 5.0))
    tau: Any = wh.latent(dist.HalfCauchy(5.0))
    theta: Any = wh.latent(lambda m: dist.Normal(m.mu, m.tau), dims="school")

    def likelihood(self, error):
        return dist.Normal(self.theta, error)


class SchoolsNoncentered(wh.Model):
    """The same, with standardised effects."""

    mu: Any = wh.latent(dist.Normal(0.0, 5.0))
    tau: Any = wh.latent(dist.HalfCauchy(5.0))
    theta: Any = wh.latent(lambda m: dist.Normal(m.mu, m.tau), dims="school", noncentered=True)

    def likelihood(self, error):
        return dist.Normal(self.theta, error)


def schools(model):
    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return Problem(model(coords={"school": 8}), y, (error,))


class Regions(wh.Model):
    """Incomes in dollars in twenty regions."""

    mu: Any = wh.latent(dist.Normal(30_000.0, 10_000.0))
    tau: Any = wh.latent(dist.HalfNormal(5_000.0))
    region: Any = wh.latent(lambda m: dist.Normal(m.mu, m.tau), dims="place", noncentered=True)
    sigma: Any = wh.latent(dist.HalfNormal(10_000.0))

    def likelihood(self, index):
        return dist.Normal(self.region[index], self.sigma)


def regions():
    rng = np.random.default_rng(13)
    index = np.repeat(np.arange(20), 8)
    mean = 33_000.0 + 3_000.0 * rng.normal(size=20)
    y = mean[index] + 6_000.0 * rng.normal(size=160)
    return Problem(Regions(coords={"place": 20}), y, (index,))


# -- counts ------------------------------------------------------------------------


class LargeCounts(wh.Model):
    """Poisson counts of about 20,000, the covariate in years."""

    level: Any = wh.latent(dist.Normal(0.0, 10.0))
    slope: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, years):
        return dist.Poisson(jnp.exp(self.level + self.slope * years))


def large_counts():
    rng = np.random.default_rng(14)
    years = rng.uniform(0.0, 30.0, 100).round(1)
    return Problem(LargeCounts(), rng.poisson(np.exp(10.0 - 0.03 * years)), (years,))


class Exposures(wh.Model):
    """Negative-binomial counts from exposures of millions of person-days."""

    level: Any = wh.latent(dist.Normal(0.0, 10.0))
    slope: Any = wh.latent(dist.Normal(0.0, 1.0), dims="covariate", shape=3)
    concentration: Any = wh.latent(dist.HalfNormal(20.0))

    def likelihood(self, exposure, x):
        mean = exposure * jnp.exp(self.level + x @ self.slope)
        return dist.NegativeBinomial2(mean, self.concentration)


def exposures():
    rng = np.random.default_rng(15)
    exposure = rng.lognormal(14.5, 1.0, 150).round()
    x = rng.normal(size=(150, 3))
    mean = exposure * np.exp(-11.0 + x @ np.array([0.3, -0.2, 0.1]))
    y = rng.poisson(mean * rng.gamma(5.0, 0.2, 150))
    return Problem(Exposures(coords={"covariate": 3}), y, (exposure, x))


# -- heavy tails -------------------------------------------------------------------


class Outliers(wh.Model):
    """A robust regression with a few responses of 10,000."""

    intercept: Any = wh.latent(dist.Normal(0.0, 100.0))
    slope: Any = wh.latent(dist.Normal(0.0, 100.0))
    sigma: Any = wh.latent(dist.HalfNormal(100.0))
    nu: Any = wh.latent(dist.Gamma(2.0, 0.1))

    def likelihood(self, x):
        return dist.StudentT(self.nu, self.intercept + self.slope * x, self.sigma)


def outliers():
    rng = np.random.default_rng(16)
    x = rng.uniform(0.0, 10.0, 100)
    y = 20.0 + 3.0 * x + rng.standard_t(3, 100)
    y[:4] = [1e4, -1e4, 1.2e4, 9e3]
    return Problem(Outliers(), y, (x,))


class FarLocation(wh.Model):
    """A Cauchy prior at zero, data at 50,000 with an error of one."""

    loc: Any = wh.latent(dist.Cauchy(0.0, 10.0))
    sigma: Any = wh.latent(dist.HalfNormal(10.0))

    def likelihood(self):
        return dist.Normal(self.loc, self.sigma)


def far_location():
    rng = np.random.default_rng(17)
    return Problem(FarLocation(), 50_000.0 + rng.normal(size=40), ())


# -- cliffs ------------------------------------------------------------------------


class Cliff(wh.Model):
    """A normal whose mean and scale are exponentials of `steepness` times a latent.

    With a steepness of 10 the log density reaches -1e34 at the starts, with 17 -1e59.
    """

    steepness: float
    mean: Any = wh.latent(dist.Normal(0.0, 1.0))
    scale: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self):
        k = self.steepness
        return dist.Normal(jnp.exp(k * self.mean), jnp.exp(k * self.scale))


def cliff(steepness):
    rng = np.random.default_rng(18)
    return Problem(Cliff(steepness), rng.normal(3.0, 0.5, 30), ())


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "incomes": lambda: incomes(Incomes()),
    "incomes_noncentered": lambda: incomes(IncomesNoncentered()),
    "survival": survival,
    "metres": metres,
    "micrograms": micrograms,
    "raw_covariates": raw_covariates,
    "filter": linear_filter,
    "quadratic_map": quadratic_map,
    "epidemic": epidemic,
    "poisson_growth": poisson_growth,
    "rare_events": rare_events,
    "composition": composition,
    "efficiency": efficiency,
    "ratings": ratings,
    "predation": predation,
    "flu": flu,
    "logistic": logistic,
    "mixture": mixture,
    "schools": lambda: schools(Schools),
    "schools_noncentered": lambda: schools(SchoolsNoncentered),
    "regions": regions,
    "large_counts": large_counts,
    "exposures": exposures,
    "outliers": outliers,
    "far_location": far_location,
    "cliff_30": lambda: cliff(10.0),
    "cliff_60": lambda: cliff(17.0),
}

# Here a chain has arrived wherever its log density is that of the reference.
SEVERAL_MODES: frozenset[str] = frozenset()


def make(name: str) -> Problem:
    """Return model, observed data and inputs of a problem.

    Args:
        name: One of `PROBLEMS`.

    Raises:
        ValueError: If there is no such problem.
    """
    if name not in PROBLEMS:
        raise ValueError(f"`name` must be one of {', '.join(PROBLEMS)}; got {name!r}.")
    return PROBLEMS[name]()
