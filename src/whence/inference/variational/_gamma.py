"""Gamma distributions of positive latents, and the rejection sampler behind them."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, PyTree

from ...core._convert import positive, whole
from ...core._types import PRNGKey, Scalar
from ._family import AbstractFamily, Layout, Noise, Vector


@runtime_checkable
class HasRejection(Protocol):
    """A family whose draws are accepted proposals of a rejection sampler."""

    def accepted(self, params: PyTree, noise: Noise) -> PyTree:
        """Return the accepted proposal behind `transform(params, noise)`."""
        ...

    def proposed(self, params: PyTree, proposal: PyTree) -> Vector:
        """Return the position that a proposal stands for."""
        ...

    def log_ratio(self, params: PyTree, proposal: PyTree) -> Scalar:
        """Return the log density of an accepted proposal, up to what has no parameters."""
        ...


class Gamma(AbstractFamily):
    """Independent gamma distributions of positive latents, whose logarithm is the position.

    The gradient by the shape is that of `jax.random.loggamma`, by implicit differentiation;
    with `RejectionSampling` it is that of accepted proposals.

    Attributes:
        initial_shape: Shape at the start; the standard deviation of the logarithm is about
            its inverse root.
        boost: A draw of shape `a` is one of shape `a + boost` times powers of as many uniform
            numbers. `RejectionSampling` has less variance with more, and needs `a + boost > 1`.

    References:
        Naesseth, Ruiz, Linderman, Blei (2017), arXiv:1610.05683, section 5. Marsaglia, Tsang
        (2000), A simple method for generating gamma variables, doi:10.1145/358407.358414.
        Figurnov, Mohamed, Mnih (2018), Implicit reparameterization gradients,
        arXiv:1805.08498.
    """

    initial_shape: float = eqx.field(default=10.0, converter=positive("initial_shape"))
    boost: int = eqx.field(static=True, default=1, converter=whole("boost", least=0))

    def bind(self, layout: Layout) -> "Gamma":
        return self

    def shared(self, layout: Layout) -> tuple[bool, ...]:
        return (False,) * len(layout)

    def noise(self, like: Vector, num: int, *, key: PRNGKey) -> Noise:
        first, second = jr.split(key)
        log_uniform = -jr.exponential(second, (num, self.boost, like.size), like.dtype)
        return jr.split(first, num), log_uniform

    def init(self, location: Vector) -> dict[str, Array]:
        return {"location": location, "log_shape": self._full(location)}

    def _full(self, like: Vector) -> Vector:
        return jnp.full_like(like, jnp.log(self.initial_shape))

    def no_step(self, params: dict[str, Array]) -> dict[str, Array]:
        zero = jnp.zeros_like(params["location"])
        return {"location": zero, "whitened": zero, "log_shape": zero}

    def move(self, params: dict[str, Array], step: dict[str, Array]) -> dict[str, Array]:
        shift = step["location"] + jnp.exp(-params["log_shape"] / 2) * step["whitened"]
        return {
            "location": params["location"] + shift,
            "log_shape": params["log_shape"] + step["log_shape"],
        }

    def transform(self, params: dict[str, Array], noise: Noise) -> Vector:
        boosted = jnp.exp(params["log_shape"]) + self.boost
        drawn = jr.loggamma(noise[0], boosted, dtype=boosted.dtype)
        return self._placed(params, drawn, noise[1])

    def _placed(self, params, log_boosted: Vector, log_uniform: Array) -> Vector:
        """`location` is the logarithm of the mean, shape over rate."""
        shape = jnp.exp(params["log_shape"])[None]
        powers = shape + jnp.arange(self.boost, dtype=shape.dtype)[:, None]
        powered = jnp.sum(log_uniform / powers, axis=0)
        return log_boosted + powered - params["log_shape"] + params["location"]

    def accepted(self, params: dict[str, Array], noise: Noise) -> PyTree:
        """Return Marsaglia and Tsang's normal number, and the logarithms of uniform ones."""
        boosted = jnp.exp(params["log_shape"]) + self.boost
        drawn = jr.loggamma(noise[0], boosted, dtype=boosted.dtype)
        root = jnp.exp((drawn - jnp.log(boosted - 1 / 3)) / 3)
        return jnp.sqrt(9 * boosted - 3) * (root - 1), noise[1]

    def proposed(self, params: dict[str, Array], proposal: PyTree) -> Vector:
        """Return the position that a proposal stands for."""
        return self._placed(params, self._log_boosted(params, proposal[0])[0], proposal[1])

    def log_ratio(self, params: dict[str, Array], proposal: PyTree) -> Scalar:
        """Return the log density of an accepted proposal, up to what has no parameters."""
        log_value, log_root = self._log_boosted(params, proposal[0])
        boosted = jnp.exp(params["log_shape"]) + self.boost
        density = (boosted - 1) * log_value - jnp.exp(log_value) - gammaln(boosted)
        # The derivative by the normal number is (a - 1/3) 3 root^2 / sqrt(9 a - 3).
        jacobian = jnp.log(boosted - 1 / 3) + 2 * log_root - 0.5 * jnp.log(9 * boosted - 3)
        return jnp.sum(density + jacobian)

    def _log_boosted(self, params, normal: Vector) -> tuple[Vector, Vector]:
        boosted = jnp.exp(params["log_shape"]) + self.boost
        log_root = jnp.log1p(normal / jnp.sqrt(9 * boosted - 3))
        return jnp.log(boosted - 1 / 3) + 3 * log_root, log_root

    def log_prob(self, params: dict[str, Array], noise: Noise) -> Scalar:
        log_shape, away = params["log_shape"], self._away(params, noise)
        shape = jnp.exp(log_shape)
        return jnp.sum(shape * (log_shape + away - jnp.exp(away)) - gammaln(shape))

    def score(self, params: dict[str, Array], noise: Noise) -> Vector:
        return -jnp.exp(params["log_shape"]) * jnp.expm1(self._away(params, noise))

    def _away(self, params, noise) -> Vector:
        return self.transform(params, noise) - params["location"]

    def entropy(self, params: dict[str, Array]) -> Scalar:
        shape = jnp.exp(params["log_shape"])
        return jnp.sum(gammaln(shape) - shape * digamma(shape) + shape)

    def describe(self, params: dict[str, Array]) -> dict[str, Array]:
        """`shape` and `rate`."""
        shape = jnp.exp(params["log_shape"])
        return {"shape": shape, "rate": shape * jnp.exp(-params["location"])}
