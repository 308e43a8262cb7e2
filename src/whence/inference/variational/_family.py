"""Families: maps from noise to positions, and their densities; Gaussian ones.

A family is a configuration; its parameters are a pytree of arrays made by `init`. The
optimiser does not see them: it makes steps, in coordinates in which steps of one size suit
all problems, and `move` takes the parameters along. Scales are logarithms, so that a step
is a relative change. The location has two sets of coordinates that add up: one in the
unit of the position, which reaches a far or narrow posterior, and one in units of the family's
own scale, which moves fast in a wide or correlated one.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, PyTree

from ...core._convert import one_of, positive
from ...core._family import AbstractFamily, Layout, Noise, Vector
from ...core._types import PRNGKey, Scalar

SCALES = ("exp", "softplus")
HALF_LOG_2PI = 0.9189385332046727


class AbstractGaussian(AbstractFamily):
    """A Gaussian family: its noise is standard normal and shifts of it do not change it."""

    @abc.abstractmethod
    def location(self, params: PyTree) -> Vector:
        """Return the mean, flat."""

    @abc.abstractmethod
    def inverse(self, params: PyTree, position: Vector) -> Noise:
        """Return a noise that `transform` makes this position of."""


class AbstractScaled(AbstractFamily):
    """`loc + exp(log_scale) * white(noise)`, of all latents at once, whatever their names.

    Attributes:
        initial_scale: Standard deviation at the start.
        scale: What a step of a scale is one of: `"exp"`, its logarithm, or `"softplus"`, what
            the scale is the softplus of: relative while it is small, absolute where large.
    """

    initial_scale: eqx.AbstractVar[float]
    scale: eqx.AbstractVar[str]

    @abc.abstractmethod
    def others(self, location: Vector) -> dict[str, PyTree]:
        """Return the other parameters at the start; steps are added to them."""

    @abc.abstractmethod
    def white(self, params: dict[str, PyTree], noise: Noise) -> Vector:
        """Return the position about the location, in units of the scale."""

    @abc.abstractmethod
    def mixed(self, params: dict[str, PyTree], step: Vector) -> Vector:
        """Return the shift of the location, in units of the scale, by a whitened step."""

    def shared(self, layout: Layout) -> tuple[bool, ...]:
        return (False,) * len(layout)

    def init(self, location: Vector) -> dict[str, PyTree]:
        scale = jnp.full_like(location, jnp.log(self.initial_scale))
        return {"loc": location, "log_scale": scale, **self.others(location)}

    def no_step(self, params: dict[str, PyTree]) -> dict[str, PyTree]:
        step = jax.tree.map(jnp.zeros_like, params)
        return step | {"whitened": step["loc"]}

    def move(self, params: dict[str, PyTree], step: dict[str, PyTree]) -> dict[str, PyTree]:
        moved = {name: jax.tree.map(jnp.add, own, step[name]) for name, own in params.items()}
        shift = jnp.exp(params["log_scale"]) * self.mixed(params, step["whitened"])
        return moved | {
            "loc": params["loc"] + (step["loc"] + shift),
            "log_scale": _moved(self.scale, params["log_scale"], step["log_scale"]),
        }

    def transform(self, params: dict[str, PyTree], noise: Noise) -> Vector:
        return params["loc"] + jnp.exp(params["log_scale"]) * self.white(params, noise)


class AbstractJointGaussian(AbstractScaled, AbstractGaussian):
    """A Gaussian of all latents at once; `params["loc"]` is its mean."""

    def bind(self, layout: Layout) -> "AbstractJointGaussian":
        return self

    def location(self, params: dict[str, Array]) -> Vector:
        return params["loc"]


class MeanField(AbstractJointGaussian):
    """Gaussians with a diagonal covariance: `location + exp(log_scale) * noise`.

    Attributes:
        initial_scale: Standard deviation at the start.
        scale: What a step of a scale is one of: `"exp"`, its logarithm, or `"softplus"`, what
            the scale is the softplus of: relative while it is small, absolute where large.
    """

    initial_scale: float = eqx.field(default=0.1, converter=positive("initial_scale"))
    scale: str = eqx.field(default="exp", converter=one_of("scale", SCALES))

    def noise(self, like: Vector, num: int, *, key: PRNGKey) -> Noise:
        return jr.normal(key, (num, like.size), like.dtype)

    def others(self, location: Vector) -> dict[str, Array]:
        return {}

    def white(self, params: dict[str, Array], noise: Vector) -> Vector:
        return noise

    def mixed(self, params: dict[str, Array], step: Vector) -> Vector:
        return step

    def inverse(self, params: dict[str, Array], position: Vector) -> Vector:
        return (position - params["loc"]) * jnp.exp(-params["log_scale"])

    def log_prob(self, params: dict[str, Array], noise: Vector) -> Scalar:
        return normal_log_prob(params["log_scale"], noise)

    def score(self, params: dict[str, Array], noise: Vector) -> Vector:
        return -noise * jnp.exp(-params["log_scale"])

    def entropy(self, params: dict[str, Array]) -> Scalar:
        return normal_entropy(params["log_scale"])

    def describe(self, params: dict[str, Array]) -> dict[str, Array]:
        return {"loc": params["loc"], "scale": jnp.exp(params["log_scale"])}


class FullRank(AbstractJointGaussian):
    """Gaussians with any covariance, by its Cholesky factor `L`: `location + L noise`.

    `L = diag(exp(log_scale)) (I + lower)` with a strictly lower-triangular `lower`: an
    entry of `lower` is a regression coefficient between coordinates in units of their own
    noise, so that it does not depend on the units of the coordinates either.

    Attributes:
        initial_scale: Standard deviation at the start.
        scale: What a step of a scale is one of: `"exp"`, its logarithm, or `"softplus"`, what
            the scale is the softplus of: relative while it is small, absolute where large.
    """

    initial_scale: float = eqx.field(default=0.1, converter=positive("initial_scale"))
    scale: str = eqx.field(default="exp", converter=one_of("scale", SCALES))

    def noise(self, like: Vector, num: int, *, key: PRNGKey) -> Noise:
        return jr.normal(key, (num, like.size), like.dtype)

    def others(self, location: Vector) -> dict[str, Array]:
        return {"lower": jnp.zeros((location.size, location.size), location.dtype)}

    def white(self, params: dict[str, Array], noise: Vector) -> Vector:
        return noise + jnp.tril(params["lower"], -1) @ noise

    def mixed(self, params: dict[str, Array], step: Vector) -> Vector:
        return self.white(params, step)

    def inverse(self, params: dict[str, Array], position: Vector) -> Vector:
        white = (position - params["loc"]) * jnp.exp(-params["log_scale"])
        return _solve(params["lower"], white, left_side=True)

    def log_prob(self, params: dict[str, Array], noise: Vector) -> Scalar:
        return normal_log_prob(params["log_scale"], noise)

    def score(self, params: dict[str, Array], noise: Vector) -> Vector:
        # L^-T = diag(1 / scale) (I + lower)^-T.
        return -_solve(params["lower"], noise, left_side=False) * jnp.exp(-params["log_scale"])

    def entropy(self, params: dict[str, Array]) -> Scalar:
        return normal_entropy(params["log_scale"])

    def describe(self, params: dict[str, Array]) -> dict[str, Array]:
        scale = jnp.exp(params["log_scale"])
        unit = jnp.eye(scale.size, dtype=scale.dtype) + jnp.tril(params["lower"], -1)
        return {"loc": params["loc"], "scale_tril": scale[:, None] * unit}


def normal_log_prob(log_scale: Vector, noise: Vector) -> Scalar:
    """Return the log density of independent normals at this noise, in nats."""
    return -jnp.sum(log_scale + 0.5 * noise**2 + HALF_LOG_2PI)


def normal_entropy(log_scale: Vector) -> Scalar:
    """Return the entropy of independent normals, in nats."""
    return jnp.sum(log_scale + 0.5 + HALF_LOG_2PI)


def _solve(lower: Array, vector: Vector, *, left_side: bool) -> Vector:
    """Return `(I + lower)^-1 vector`, or of the transpose; the diagonal of ones is not read."""
    row = vector[:, None] if left_side else vector[None]
    return jax.lax.linalg.triangular_solve(
        lower, row, left_side=left_side, lower=True, unit_diagonal=True
    ).ravel()


def _moved(kind: str, log_scale: Vector, step: Vector) -> Vector:
    """Return the logarithm of a scale after a step."""
    if kind == "exp":
        return log_scale + step
    scale = jnp.exp(log_scale)
    raw = scale + jnp.log(-jnp.expm1(-scale)) + step
    small = raw < -10  # where softplus(x) is exp(x) - exp(2 x) / 2
    value = jnp.log(jax.nn.softplus(jnp.where(small, 0, raw)))
    return jnp.where(small, raw - jnp.exp(jnp.where(small, raw, 0)) / 2, value)


def key_of(location: Vector) -> PRNGKey:
    """Return a key that is another for every place where a fit may start."""
    bits = jax.lax.bitcast_convert_type(location.astype(jnp.float32), jnp.uint32)
    return jr.key(jnp.sum(bits, dtype=jnp.uint32))
