"""Posteriors of posteriordb that are more than a linear regression."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ..core._types import Scalar
from ..language._latent import derived, latent
from ..language._model import Model
from ._ordered import OrderedNormal
from ._zoo_types import Problem

FLAT = dist.ImproperUniform(constraints.real, (), ())


class EightSchools(Model):
    """Effects of coaching in eight schools.

    References:
        Rubin (1981), doi:10.3102/10769986006004377.
    """

    mu: Array = latent(dist.Normal(0.0, 5.0))
    tau: Array = latent(dist.HalfCauchy(5.0))
    theta: Array = latent(lambda m: dist.Normal(m.mu, m.tau), dims="school", noncentered=True)

    def likelihood(self, sigma: Float[Array, " school"]) -> dist.Distribution:
        return dist.Normal(self.theta, sigma)


class Autoregressive(Model):
    """A Gaussian autoregression of order `K`."""

    alpha: Array = latent(dist.Normal(0.0, 10.0))
    beta: Array = latent(dist.Normal(0.0, 10.0), dims="lag")
    sigma: Array = latent(dist.HalfCauchy(2.5))

    def likelihood(self, lagged: Float[Array, "time lag"]) -> dist.Distribution:
        """Each value given the `K` before it, the latest first."""
        return dist.Normal(self.alpha + lagged @ self.beta, self.sigma)


class Garch(Model):
    """GARCH(1, 1), flat priors on the stationary region."""

    sigma1: Array  # standard deviation at the first time
    mu: Array = latent(FLAT)
    alpha0: Array = latent(dist.ImproperUniform(constraints.positive, (), ()))
    alpha1: Array = latent(dist.ImproperUniform(constraints.unit_interval, (), ()))
    beta1: Array = latent(
        lambda m: dist.ImproperUniform(constraints.interval(0.0, 1.0 - m.alpha1), (), ())
    )

    def likelihood(self, previous: Float[Array, " earlier"]) -> dist.Distribution:
        """Each value given all before it; `previous` is all values but the last."""
        shocks = self.alpha0 + self.alpha1 * (previous - self.mu) ** 2

        def step(variance, shock):
            variance = shock + self.beta1 * variance
            return variance, variance

        first = self.sigma1**2
        later = jax.lax.scan(step, first, shocks)[1]
        return dist.Normal(self.mu, jnp.sqrt(jnp.concatenate([first[None], later])))


class DriveHMM(Model):
    """A hidden Markov model of a basketball player's drives."""

    # prior concentrations of the transition rows, shape `(state, state)`
    alpha: Float[Array, "state state"]
    theta1: Array = latent(lambda m: dist.Dirichlet(m.alpha[0]), dims="state")
    theta2: Array = latent(lambda m: dist.Dirichlet(m.alpha[1]), dims="state")
    phi: Array = latent(lambda m: OrderedNormal([0.0, 3.0], 1.0, positive=True), dims="state")
    lam: Array = latent(lambda m: OrderedNormal([0.0, 3.0], 1.0, positive=True), dims="state")

    def log_likelihood(self, y: dict[str, Array]) -> Scalar:
        """Log density of the pairs `u, v` at all times, the states summed out.

        The recursion starts without a distribution of the first state, as the reference
        does: its first term is the sum, not the mean, over states. The terms are no product
        over rows that a minibatch could take, so only their sum is returned.
        """
        transition = jnp.log(jnp.stack([self.theta1, self.theta2]))
        of = lambda rate, value: dist.Exponential(rate[None]).log_prob(value[:, None])
        emission = of(self.phi, y["u"]) + of(self.lam, y["v"])

        def step(forward, log_emission):
            return logsumexp(forward[:, None] + transition, axis=0) + log_emission, None

        return logsumexp(jax.lax.scan(step, emission[0], emission[1:])[0])


class GaussianMixture(Model):
    """A mixture of two normals, told apart by the order of their means."""

    mu: Array = latent(lambda m: OrderedNormal([0.0, 0.0], 2.0), dims="component")
    sigma: Array = latent(dist.HalfNormal(2.0), dims="component", shape=2)
    theta: Array = latent(dist.Beta(5.0, 5.0))

    def likelihood(self) -> dist.Distribution:
        """The first component with probability `theta`."""
        weights = dist.Categorical(probs=jnp.stack([self.theta, 1.0 - self.theta]))
        return dist.MixtureSameFamily(weights, dist.Normal(self.mu, self.sigma))


class PoissonProcess(Model):
    """Counts whose log rate is a Gaussian process."""

    x: Float[Array, " data"]  # where the counts were made, shape `(data,)`
    rho: Array = latent(dist.Gamma(25.0, 4.0))
    alpha: Array = latent(dist.HalfNormal(2.0))
    f_tilde: Array = latent(dist.Normal(0.0, 1.0), shape=lambda m: m.x.shape)

    @derived
    def f(self) -> Float[Array, " data"]:
        """The log rate."""
        distance = (self.x[:, None] - self.x[None]) / self.rho
        covariance = self.alpha**2 * jnp.exp(-0.5 * distance**2)
        # The reference's jitter; with float32 the factor does not exist.
        jitter = 1e-10 * jnp.eye(len(self.x), dtype=self.x.dtype)
        return jnp.linalg.cholesky(covariance + jitter) @ self.f_tilde

    def likelihood(self) -> dist.Distribution:
        return dist.Poisson(jnp.exp(self.f))


class LotkaVolterra(Model):
    """Hares and lynxes: predator and prey, observed with log-normal error.

    References:
        Carpenter (2018), "Predator-prey population dynamics: the Lotka-Volterra model in
        Stan", Stan case studies.
    """

    theta: Array = latent(
        lambda m: dist.TruncatedNormal(
            jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05]), low=0.0
        )
    )
    z_init: Array = latent(dist.LogNormal(math.log(10.0), 1.0), dims="species", shape=2)
    sigma: Array = latent(dist.LogNormal(-1.0, 1.0), dims="species", shape=2)

    def likelihood(self, times: Float[Array, " time"]) -> dict[str, dist.Distribution]:
        """Pelts at time zero and at `times`, in thousands."""
        log_init = jnp.log(self.z_init)
        log_path = lotka_volterra_path(self.theta, log_init, times)
        return {
            "y_init": dist.LogNormal(log_init, self.sigma),
            "y": dist.LogNormal(log_path, self.sigma),
        }


def lotka_volterra_path(
    theta: Float[Array, " 4"],
    log_init: Float[Array, " 2"],
    times: Float[Array, " time"],
    *,
    substeps: int = 48,
) -> Float[Array, "time 2"]:
    """Log populations at `times`, from time zero, by fixed steps of Runge and Kutta.

    In logarithms the equations are `a' = theta[0] - theta[1] exp(b)` and
    `b' = -theta[2] + theta[3] exp(a)`: no step can leave the positive quadrant. Over the
    posterior of the hares and lynxes 48 steps a year are accurate to about 1e-8.

    Args:
        theta: Growth of prey, predation, death of predators, growth of predators.
        log_init: Log populations of prey and predators at time zero.
        times: Increasing times.
        substeps: Steps of the classical fourth-order method between two times.
    """
    growth, predation, death, conversion = theta

    # Two scalars, not a vector of two: the compiler fuses a whole step of them.
    def slope(z):
        return growth - predation * jnp.exp(z[1]), conversion * jnp.exp(z[0]) - death

    def move(z, h, k):
        return z[0] + h * k[0], z[1] + h * k[1]

    def between(z, duration):
        h = duration / substeps

        def step(z, _):
            k1 = slope(z)
            k2 = slope(move(z, h / 2, k1))
            k3 = slope(move(z, h / 2, k2))
            k4 = slope(move(z, h, k3))
            mean = [(p + 2 * q + 2 * r + s) / 6 for p, q, r, s in zip(k1, k2, k3, k4)]
            return move(z, h, mean), None

        z = jax.lax.scan(step, z, None, length=substeps)[0]
        return z, jnp.stack(z)

    start = (log_init[0], log_init[1])
    return jax.lax.scan(between, start, jnp.diff(times, prepend=0.0))[1]


def eight_schools(data: Mapping[str, Any]) -> Problem:
    """Eight schools."""
    model = EightSchools(coords={"school": data["J"]})
    return Problem(model, _array(data["y"]), (_array(data["sigma"]),))


def ark(data: Mapping[str, Any]) -> Problem:
    """An autoregression of order five, simulated."""
    order, y = data["K"], _array(data["y"])
    lagged = jnp.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], axis=1)
    return Problem(Autoregressive(coords={"lag": order}), y[order:], (lagged,))


def garch11(data: Mapping[str, Any]) -> Problem:
    """GARCH(1, 1), simulated."""
    y = _array(data["y"])
    return Problem(Garch(_array(data["sigma1"])), y, (y[:-1],))


def hmm_drive(data: Mapping[str, Any]) -> Problem:
    """A basketball player's drives."""
    y = {"u": _array(data["u"]), "v": _array(data["v"])}
    return Problem(DriveHMM(_array(data["alpha"])), y, ())


def low_dim_gauss_mix(data: Mapping[str, Any]) -> Problem:
    """A mixture of two normals, simulated."""
    return Problem(GaussianMixture(), _array(data["y"]), ())


def gp_pois_regr(data: Mapping[str, Any]) -> Problem:
    """Poisson counts with a Gaussian process, simulated."""
    return Problem(PoissonProcess(_array(data["x"])), jnp.asarray(data["k"]), ())


def lotka_volterra(data: Mapping[str, Any]) -> Problem:
    """Pelts of hares and lynxes, Hudson Bay Company, 1900 to 1920."""
    y = {"y_init": _array(data["y_init"]), "y": _array(data["y"])}
    return Problem(LotkaVolterra(), y, (_array(data["ts"]),))


def _array(value: Any) -> Array:
    return jnp.asarray(value, float)
