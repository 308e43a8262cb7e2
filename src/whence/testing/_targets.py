"""Targets whose moments are known exactly, for tests of engines.

Each `constrain` returns a dict of arrays, and `truth` gives the exact mean and standard
deviation of every entry whose moments a sampler can be held to. The densities of this file
are normalised: their log evidence is zero. Those of `_data_targets.py` have data.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import digamma, gammaln, polygamma
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from ..core._convert import flag, number, positive, whole
from ..core._target import AbstractTarget
from ..core._types import PRNGKey, Scalar


class Moments(NamedTuple):
    """Exact mean and standard deviation of one variable, arrays of its shape."""

    mean: Array
    sd: Array


class Gaussian(AbstractTarget):
    """A Gaussian with mean `1, 2, ..., dim` in units of its standard deviations.

    The variances along the principal axes run geometrically from `1 / condition_number` to
    1. A correlated one has its axes turned by a fixed orthogonal matrix.

    Attributes:
        mean: Mean, shape `(dim,)`.
        axes: Columns are the principal axes, shape `(dim, dim)`.
        scales: Standard deviations along the axes, shape `(dim,)`.
    """

    mean: Float[Array, " dim"]
    axes: Float[Array, "dim dim"]
    scales: Float[Array, " dim"]

    def __init__(
        self, dim: int = 2, *, condition_number: float = 1.0, correlated: bool = False
    ) -> None:
        dim, correlated = whole("dim", least=1)(dim), flag("correlated")(correlated)
        condition_number = number("condition_number", least=1)(condition_number)
        self.scales = jnp.geomspace(condition_number**-0.5, 1.0, dim)
        rotation = np.eye(dim)
        if correlated:
            # Any fixed rotation without structure will do; this seed is arbitrary.
            noise = np.random.default_rng(7).normal(size=(dim, dim))
            rotation = np.linalg.qr(noise).Q
        self.axes = jnp.asarray(rotation, self.scales.dtype)
        numbers = jnp.arange(1, dim + 1).astype(self.covariance.dtype)
        self.mean = numbers * jnp.sqrt(jnp.diag(self.covariance))

    @property
    def covariance(self) -> Float[Array, "dim dim"]:
        """The exact covariance."""
        return (self.axes * self.scales[None] ** 2) @ self.axes.T

    @property
    def truth(self) -> dict[str, Moments]:
        """Exact moments of `x`."""
        return {"x": Moments(self.mean, jnp.sqrt(jnp.diag(self.covariance)))}

    def init(self, *, key: PRNGKey) -> Float[Array, " dim"]:
        return jr.uniform(key, self.mean.shape, self.mean.dtype, -2.0, 2.0)

    def log_density(self, position: Float[Array, " dim"]) -> Scalar:
        return norm.logpdf((position - self.mean) @ self.axes, 0.0, self.scales).sum()

    def constrain(self, position: Float[Array, " dim"]) -> dict[str, Array]:
        return {"x": position}


class LogGamma(AbstractTarget):
    """Independent Gamma(`shape`, 1) variables, sampled on the log scale: a skewed target.

    On the log scale the density has a heavy left and a light right tail, and skewness
    `polygamma(2, shape) / polygamma(1, shape)**1.5`: about -1.14 at shape 1.

    Attributes:
        shape: Shape parameter of each variable, shape `(dim,)`.
    """

    shape: Float[Array, " dim"]

    def __init__(self, shape: tuple[float, ...] = (1.0, 4.0)) -> None:
        if not isinstance(shape, tuple | list):
            raise ValueError(f"`shape` must be a tuple of positive numbers; got {shape!r}.")
        self.shape = jnp.asarray([positive("shape")(value) for value in shape], float)

    @property
    def truth(self) -> dict[str, Moments]:
        """Exact moments of `gamma` and of its logarithm `x`."""
        return {
            "x": Moments(digamma(self.shape), jnp.sqrt(polygamma(1, self.shape))),
            "gamma": Moments(self.shape, jnp.sqrt(self.shape)),
        }

    def init(self, *, key: PRNGKey) -> Float[Array, " dim"]:
        return jr.uniform(key, self.shape.shape, self.shape.dtype, -2.0, 2.0)

    def log_density(self, position: Float[Array, " dim"]) -> Scalar:
        return jnp.sum(self.shape * position - jnp.exp(position) - gammaln(self.shape))

    def constrain(self, position: Float[Array, " dim"]) -> dict[str, Array]:
        return {"x": position, "gamma": jnp.exp(position)}


class Funnel(AbstractTarget):
    """Neal's funnel: `v ~ N(0, scale)` and `x[i] ~ N(0, exp(v / 2))`.

    The moments of `x` exist but are useless as a test: at `scale` 3 its kurtosis is
    `3 exp(9)`, so no sample of feasible size estimates its standard deviation. Instead
    `log|x| = v / 2 + log|z|` with `z` standard normal has light tails and exact moments:
    mean `-(euler + log 2) / 2` and variance `(pi^2 + 2 scale^2) / 8`.

    Attributes:
        scale: Standard deviation of `v`; 3 is Neal's funnel, which no sampler with one step
            size visits rightly, 1 is within reach of all.
        dim: Number of `x`.

    References:
        Neal (2003), "Slice sampling", section 8, doi:10.1214/aos/1056562461.
    """

    scale: Scalar
    dim: int = eqx.field(static=True)

    def __init__(self, dim: int = 9, *, scale: float = 3.0) -> None:
        self.scale = jnp.asarray(positive("scale")(scale), float)
        self.dim = whole("dim", least=1)(dim)

    @property
    def truth(self) -> dict[str, Moments]:
        """Exact moments of `v` and of `log_abs_x`."""
        ones = jnp.ones(self.dim, self.scale.dtype)
        mean = -(np.euler_gamma + math.log(2.0)) / 2
        sd = jnp.sqrt((math.pi**2 + 2 * self.scale**2) / 8)
        return {
            "v": Moments(jnp.zeros_like(self.scale), self.scale),
            "log_abs_x": Moments(mean * ones, sd * ones),
        }

    def init(self, *, key: PRNGKey) -> dict[str, Array]:
        key_v, key_x = jr.split(key)
        dtype = self.scale.dtype
        return {
            "v": jr.uniform(key_v, (), dtype, -2.0, 2.0),
            "x": jr.uniform(key_x, (self.dim,), dtype, -2.0, 2.0),
        }

    def log_density(self, position: dict[str, Array]) -> Scalar:
        v, x = position["v"], position["x"]
        return norm.logpdf(v, 0.0, self.scale) + norm.logpdf(x, 0.0, jnp.exp(v / 2)).sum()

    def constrain(self, position: dict[str, Array]) -> dict[str, Array]:
        return position | {"log_abs_x": jnp.log(jnp.abs(position["x"]))}


class Autoregression(AbstractTarget):
    """A stationary Gaussian AR(1) path with standard normal marginals: many correlated dims.

    `x[0] ~ N(0, 1)` and `x[t] ~ N(correlation x[t-1], sqrt(1 - correlation^2))`. The
    condition number approaches `((1 + correlation) / (1 - correlation))^2` as `dim` grows.

    Attributes:
        correlation: Correlation of neighbours.
        dim: Length of the path.
    """

    correlation: Scalar
    dim: int = eqx.field(static=True)

    def __init__(self, dim: int = 100, *, correlation: float = 0.9) -> None:
        correlation = number("correlation", above=-1, below=1)(correlation)
        self.correlation = jnp.asarray(correlation, float)
        self.dim = whole("dim", least=2)(dim)

    @property
    def truth(self) -> dict[str, Moments]:
        """Exact moments of `x`."""
        ones = jnp.ones(self.dim, self.correlation.dtype)
        return {"x": Moments(0 * ones, ones)}

    @property
    def covariance(self) -> Float[Array, "dim dim"]:
        """The exact covariance."""
        times = jnp.arange(self.dim).astype(self.correlation.dtype)
        return self.correlation ** jnp.abs(times[:, None] - times[None])

    def init(self, *, key: PRNGKey) -> Float[Array, " dim"]:
        """Uniform on (-2, 2)."""
        return jr.uniform(key, (self.dim,), self.correlation.dtype, -2.0, 2.0)

    def log_density(self, position: Float[Array, " dim"]) -> Scalar:
        steps = position[1:] - self.correlation * position[:-1]
        noise = jnp.sqrt(1 - self.correlation**2)
        return norm.logpdf(position[0]) + norm.logpdf(steps, 0.0, noise).sum()

    def constrain(self, position: Float[Array, " dim"]) -> dict[str, Array]:
        return {"x": position}
