"""A family with one scale for all its Gaussians: inverse gamma, and normal given it."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, PyTree

from ...core._convert import flag, part, positive
from ...core._types import PRNGKey, Scalar
from ._family import AbstractFamily, AbstractGaussian, Layout, MeanField, Noise, Vector


class ScaleMixtureFamily(AbstractFamily):
    """`v ~ inverse gamma(a, b)` and `u | v ~ N(mu, v S)`: the law of u is a Student t.

    One v for all u, as in the posterior of a Gaussian process whose variance v is unknown:
    with Gaussian noise that is a multiple of v the posterior is a member (with full S). The
    coordinate of v in a position is its logarithm; the gradient by a is that of
    `jax.random.loggamma`, by implicit differentiation.

    Attributes:
        scale: Name of the latent v, a positive number.
        base: Family of the others given v, `MeanField()`, `FullRank()` or `Blocks(...)`; its
            scale or factor is that of S.
        noncentered: Whether the position holds `u / sqrt(v)` and not u, which then is
            `N(mu / sqrt(v), S)` given v.
        initial_shape: a at the start; the standard deviation of `log v` is about its inverse
            root.
        index: Set by `bind`: where v is in a flat position.

    References:
        Lee, Yun, Yang, Lee (2022), Scale mixtures of neural network Gaussian processes,
        arXiv:2107.01408. Figurnov, Mohamed, Mnih (2018), Implicit reparameterization
        gradients, arXiv:1805.08498.
    """

    scale: str = eqx.field(converter=part("scale", str))
    base: AbstractGaussian = eqx.field(
        default=MeanField(), converter=part("base", AbstractGaussian)
    )
    noncentered: bool = eqx.field(static=True, default=True, converter=flag("noncentered"))
    initial_shape: float = eqx.field(default=10.0, converter=positive("initial_shape"))
    index: int = -1

    def bind(self, layout: Layout) -> "ScaleMixtureFamily":
        start = 0
        for name, size, *_ in layout:
            if name == self.scale:
                if size != 1:
                    raise ValueError(
                        f"`scale` must name a latent of one number; {name!r} has {size}."
                    )
                others = tuple(part for part in layout if part[0] != name)
                if not others:
                    raise ValueError(f"There must be latents other than `scale` ({name!r}).")
                base = self.base.bind(others)
                return dataclasses.replace(self, index=start, base=base)
            start += size
        known = ", ".join(name for name, *_ in layout)
        raise ValueError(f"`scale` must name a latent ({known}); got {self.scale!r}.")

    def shared(self, layout: Layout) -> tuple[bool, ...]:
        return (False,) * len(layout)

    def noise(self, like: Vector, num: int, *, key: PRNGKey) -> Noise:
        key_scale, key_rest = jr.split(key)
        rest = self.base.noise(self._others(like), num, key=key_rest)
        return jr.split(key_scale, num), rest

    # Parameters: `location` is log(b / a); the base is that of the coordinates where v is
    # b / a, so that its location and scale are of the size that positions have. Away from
    # there, at log v = location + t, the mean is divided by exp(t / 2) (non-centred), or the
    # deviation multiplied by it (centred).

    def init(self, location: Vector) -> dict[str, PyTree]:
        shape = jnp.asarray(self.initial_shape, location.dtype)
        return {
            "location": location[self.index],
            "log_shape": jnp.log(shape),
            "base": self.base.init(self._others(location)),
        }

    def no_step(self, params: dict[str, PyTree]) -> dict[str, PyTree]:
        zero = jnp.zeros_like(params["location"])
        base = self.base.no_step(params["base"])
        return {"location": zero, "whitened": zero, "log_shape": zero, "base": base}

    def move(self, params: dict[str, PyTree], step: dict[str, PyTree]) -> dict[str, PyTree]:
        shift = step["location"] + jnp.exp(-params["log_shape"] / 2) * step["whitened"]
        return {
            "location": params["location"] + shift,
            "log_shape": params["log_shape"] + step["log_shape"],
            "base": self.base.move(params["base"], step["base"]),
        }

    def transform(self, params: dict[str, PyTree], noise: Noise) -> Vector:
        shift = self._shift(params, noise)
        mean = self.base.location(params["base"])
        deviation = self.base.transform(params["base"], noise[1]) - mean
        if self.noncentered:
            others = jnp.exp(-shift / 2) * mean + deviation
        else:
            others = mean + jnp.exp(shift / 2) * deviation
        return self._with_scale(params["location"] + shift, others)

    def log_prob(self, params: dict[str, PyTree], noise: Noise) -> Scalar:
        shift = self._shift(params, noise)
        shape = jnp.exp(params["log_shape"])
        normaliser = shape * params["log_shape"] - gammaln(shape)
        own = normaliser - shape * (shift + jnp.exp(-shift))
        given = self.base.log_prob(params["base"], noise[1])
        return own + given - (0 if self.noncentered else self._size(params) * shift / 2)

    def score(self, params: dict[str, PyTree], noise: Noise) -> Vector:
        shift = self._shift(params, noise)
        own = jnp.exp(params["log_shape"]) * jnp.expm1(-shift)
        mean = self.base.location(params["base"])
        score = self.base.score(params["base"], noise[1])
        if self.noncentered:
            tilt = 0.5 * jnp.exp(-shift / 2) * (score @ mean)
        else:
            deviation = self.base.transform(params["base"], noise[1]) - mean
            tilt = -0.5 * (self._size(params) + score @ deviation)
            score = jnp.exp(-shift / 2) * score
        return self._with_scale(own + tilt, score)

    def entropy(self, params: dict[str, PyTree]) -> Scalar:
        shape = jnp.exp(params["log_shape"])
        own = shape + gammaln(shape) - shape * digamma(shape)
        given = self.base.entropy(params["base"])
        if self.noncentered:
            return own + given
        return own + given + self._size(params) / 2 * (params["log_shape"] - digamma(shape))

    def describe(self, params: dict[str, PyTree]) -> dict[str, Array]:
        """`a`, `b`, and the base's: `loc` is mu, its scale or factor that of S."""
        shape = jnp.exp(params["log_shape"])
        base = self.base.describe(params["base"])
        unit = jnp.exp(params["location"] / 2)
        if self.noncentered:
            base["loc"] = base["loc"] * unit
        else:
            base = {name: v if name == "loc" else v / unit for name, v in base.items()}
        return {"a": shape, "b": shape * jnp.exp(params["location"]), **base}

    def _shift(self, params, noise) -> Array:
        shape = jnp.exp(params["log_shape"])
        return params["log_shape"] - jr.loggamma(noise[0], shape, dtype=shape.dtype)

    def _size(self, params) -> int:
        return self.base.location(params["base"]).size

    def _others(self, vector: Vector) -> Array:
        return jnp.concatenate([vector[: self.index], vector[self.index + 1 :]])

    def _with_scale(self, scale: Array, others: Vector) -> Array:
        return jnp.concatenate([others[: self.index], scale[None], others[self.index :]])
