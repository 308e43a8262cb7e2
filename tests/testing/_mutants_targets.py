"""Targets and models, right and with planted errors."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from numpyro.distributions import constraints

import whence as wh
from whence.testing import GaussianMean, LogGamma


class Rates(wh.AbstractTarget):
    """Gamma variables sampled as their logarithms; `LogGamma` written by hand.

    Attributes:
        truth: Exact moments.
        jacobian: Whether the log density counts the change of variables.
    """

    shape: jax.Array
    truth: dict
    jacobian: bool = eqx.field(static=True)

    def __init__(self, *, jacobian: bool):
        right = LogGamma((2.0, 4.0))  # without it Gamma(1) and Gamma(3)
        self.shape, self.truth, self.jacobian = right.shape, right.truth, jacobian

    def init(self, *, key):
        return jr.uniform(key, self.shape.shape, minval=-2.0, maxval=2.0)

    def log_density(self, position):
        rate = jnp.exp(position)
        density = (self.shape - 1) * position - rate - gammaln(self.shape)
        return jnp.sum(density + position * self.jacobian)

    def constrain(self, position):
        return {"x": position, "gamma": jnp.exp(position)}


class _Above(constraints.Constraint):
    """Above zero, by a bijection of our own."""

    is_discrete = False
    event_dim = 0

    def __init__(self, jacobian):
        self.jacobian = jacobian

    def __call__(self, x):
        return x > 0

    def __eq__(self, other):
        return isinstance(other, _Above) and self.jacobian == other.jacobian

    def __hash__(self):
        return hash(self.jacobian)

    def tree_flatten(self):
        return (), ((), {"jacobian": self.jacobian})


class _Exp(dist.transforms.Transform):
    domain = constraints.real
    codomain = constraints.positive

    def __init__(self, jacobian):
        self.jacobian = jacobian

    def __call__(self, x):
        return jnp.exp(x)

    def _inverse(self, y):
        return jnp.log(y)

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return x if self.jacobian else jnp.zeros_like(x)

    def tree_flatten(self):
        return (), ((), {"jacobian": self.jacobian})


dist.biject_to.register(_Above)(lambda constraint: _Exp(constraint.jacobian))


class HalfNormal(dist.Distribution):
    """A half-normal variable whose support is ours."""

    arg_constraints = {}

    def __init__(self, jacobian):
        self.jacobian = jacobian
        super().__init__(())

    @property
    def support(self):
        return _Above(self.jacobian)

    def sample(self, key, sample_shape=()):
        return jnp.abs(jr.normal(key, sample_shape))

    def log_prob(self, value):
        return dist.HalfNormal(1.0).log_prob(value)


class Spread(wh.Model):
    """A scale, whose bijection may forget its Jacobian."""

    jacobian: bool = eqx.field(static=True)
    sigma: Any = wh.latent(lambda m: HalfNormal(m.jacobian))

    def likelihood(self):
        return dist.Normal(0.0, self.sigma)


@jax.custom_jvp
def _turned(x):
    return x


@_turned.defjvp
def _turned_jvp(primals, tangents):
    return primals[0], -tangents[0]


class Gradient(wh.Model):
    """A mean whose likelihood may have a derivative rule of the wrong sign."""

    turned: bool = eqx.field(static=True)
    mu: Any = wh.latent(dist.Normal(0.0, 2.0))

    def likelihood(self):
        return dist.Normal(_turned(self.mu) if self.turned else self.mu, 1.0)


class Root(wh.Model):
    """The root of a positive part; its derivative is NaN where it is not needed."""

    guarded: bool = eqx.field(static=True)
    x: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self):
        above = jnp.where(self.x > 0, self.x, 1.0) if self.guarded else self.x
        return dist.Normal(jnp.where(self.x > 0, jnp.sqrt(above), 0.0), 1.0)


class Noise(wh.Model):
    """The mean of normal values with a known, small noise."""

    mu: Any = wh.latent(dist.Normal(0.0, 2.0))

    def likelihood(self):
        return dist.Normal(self.mu, 0.3)


class Scale(wh.Model):
    """The scale of normal values."""

    sigma: Any = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self):
        return dist.Normal(0.0, self.sigma)


class Rows(GaussianMean):
    """A target that gives the first rows whatever rows are asked for."""

    def log_likelihood(self, position, rows=None):
        rows = None if rows is None else jnp.arange(rows.size)
        return GaussianMean.log_likelihood(self, position, rows)


def mean_model(y=None, count=8):
    """The mean of normal values, for numpyro."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", count):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


class Blind(wh.AbstractDescribedTarget):
    """A front end that takes the observed site of a model for one more latent.

    Attributes:
        inner: The target of the model without its data.
        y: The data, which nothing looks at.
    """

    inner: Any
    y: jax.Array

    def init(self, *, key):
        return self.inner.init(key=key)

    def log_density(self, position):
        return self.inner.log_density(position)

    def log_prior(self, position):
        return self.inner.log_prior(position)

    def log_likelihood(self, position, rows=None):
        return self.inner.log_likelihood(position, rows)

    def constrain(self, position):
        return self.inner.constrain(position)

    def variables(self, draw):
        return self.inner.variables(draw)

    @property
    def num_data(self):
        return None

    @property
    def dims(self):
        return self.inner.dims

    @property
    def coords(self):
        return self.inner.coords

    @property
    def observed_data(self):
        return {"y": self.y}

    @property
    def constant_data(self):
        return {}

    def pointwise(self, draw):
        return self.inner.pointwise(draw)

    def predict(self, draw, inputs, *, key):
        return {"y": draw["y"]}

    def sample_prior(self, *, key):
        return self.inner.sample_prior(key=key)


class Silent(Blind):
    """The same, but it does not show the latent that it made of the data."""

    def constrain(self, position):
        draw = self.inner.constrain(position)
        return {"mu": draw["mu"]}
