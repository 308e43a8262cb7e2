"""Models with closed forms, an exact engine, and both with errors planted in them."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist

import whence as wh
from whence.core._engine import never


class Mean(wh.Model):
    """The mean of five normal values: the posterior is normal."""

    mu: jax.Array = wh.latent(dist.Normal(0.0, 2.0))

    def likelihood(self):
        return dist.Normal(self.mu, 1.0)

    @wh.derived
    def positive(self):
        return (self.mu > 0).astype(float)


class Scale(wh.Model):
    """The scale of six normal values: a skewed posterior with a Jacobian."""

    sigma: jax.Array = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self):
        return dist.Normal(0.0, self.sigma)


class Pair(wh.Model):
    """Two effects of which the data see the sum: a correlated posterior."""

    a: jax.Array = wh.latent(dist.Normal(0.0, 1.0))
    b: jax.Array = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self):
        return dist.Normal(self.a + self.b, 0.3)


def mean_target():
    return wh.condition(Mean(), jnp.zeros(5))


def scale_target():
    return wh.condition(Scale(), jnp.ones(6))


class Exact(wh.AbstractEngine):
    """Independent draws from the posterior of `Mean`, or from a distorted one.

    Attributes:
        draws: Number of draws.
        width: Factor on the standard deviation.
        shift: Added to the mean, in standard deviations.
        use_data: Whether to look at the data; if not, draws are from the prior.
        fail_above: Fails if the mean of the data is above this.
    """

    draws: int = 99
    width: float = 1.0
    shift: float = 0.0
    use_data: bool = True
    fail_above: float = float("inf")

    @property
    def name(self) -> str:
        return "Exact"

    @property
    def schedule(self) -> wh.Schedule:
        return wh.Schedule(1, 0, self.draws)

    def validate(self, target) -> None:
        pass

    def init(self, target, *, key):
        return jnp.mean(target.y)

    def step(self, target, state, index, *, key):
        y = target.y if self.use_data else jnp.zeros(0)
        variance = 1 / (1 / 4 + y.size)
        sd = jnp.sqrt(variance)
        draw = variance * y.sum() + sd * (self.shift + self.width * jr.normal(key))
        return state, wh.Info({"mu": draw}, {})

    def done(self, state):
        return never()

    def result(self, state):
        bad = state > self.fail_above
        return wh.RESULTS.where(bad, wh.RESULTS.nonfinite_state, wh.RESULTS.successful)

    def posterior(self, target, state, trace, *, key):
        return wh.Sample(trace.sampling.position, trace.sampling.stats, method="exact")


class Wrong(wh.AbstractDescribedTarget):
    """A target with something added to its log density."""

    target: wh.ModelTarget
    error: Callable = eqx.field(static=True)

    def init(self, *, key):
        return self.target.init(key=key)

    def log_density(self, position):
        return self.target.log_density(position) + self.error(position)

    def log_prior(self, position):
        return self.target.log_prior(position) + self.error(position)

    def log_likelihood(self, position, rows=None):
        return self.target.log_likelihood(position, rows)

    def constrain(self, position):
        return self.target.constrain(position)

    def variables(self, draw):
        return self.target.variables(draw)

    def pointwise(self, draw):
        return self.target.pointwise(draw)

    def predict(self, draw, inputs, *, key):
        return self.target.predict(draw, inputs, key=key)

    def sample_prior(self, *, key):
        return self.target.sample_prior(key=key)

    def sample_prior_position(self, *, key):
        return self.target.sample_prior_position(key=key)

    def with_data(self, data):
        return dataclasses.replace(self, target=self.target.with_data(data))

    @property
    def num_data(self):
        return self.target.num_data

    @property
    def dims(self):
        return self.target.dims

    @property
    def coords(self):
        return self.target.coords

    @property
    def observed_data(self):
        return self.target.observed_data

    @property
    def constant_data(self):
        return self.target.constant_data


def without_jacobian(target, latent):
    """Leave out the Jacobian of the exponential that makes `latent` positive."""
    return Wrong(target, lambda position: -position[latent])
