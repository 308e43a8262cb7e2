"""Normalizing flows: noise through layers, each with its density and its force.

A layer maps `x` to `y` with the Jacobian `J`. The gradient of the log density by position,
`G`, is carried along with the draw: `G_y = J^-T (G_x - d log|det J| / dx)`, from `G = -x` of
standard normal noise. So a path derivative takes no inverse of the flow, which a planar or
radial layer does not have in closed form.

References:
    Rezende, Mohamed (2015), Variational inference with normalizing flows, arXiv:1505.05770.
    Vaitl, Winkler, Richter, Kessel (2024), arXiv:2403.15881, proposition 4.1.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, PyTree

from ...core._convert import part, positive, whole
from ...core._types import PRNGKey, Scalar
from ._family import AbstractScaled, Layout, Vector, key_of, normal_log_prob


class AbstractLayer(eqx.Module):
    """A smooth one-to-one map of vectors with parameters."""

    @abc.abstractmethod
    def init(self, like: Vector, *, key: PRNGKey) -> PyTree:
        """Return parameters for vectors like `like`: of a map that changes little."""

    @abc.abstractmethod
    def apply(self, params: PyTree, x: Vector) -> tuple[Vector, Scalar]:
        """Return where `x` goes, and the log of the absolute Jacobian determinant."""

    @abc.abstractmethod
    def push(self, params: PyTree, x: Vector, force: Vector) -> Vector:
        """Return the gradient of a log density where `x` goes, given that at `x`."""


class Planar(AbstractLayer):
    """`x + u tanh(w x + b)`, with `u` such that it can be inverted.

    References:
        Rezende, Mohamed (2015), arXiv:1505.05770, equation 10 and appendix A.1.
    """

    def init(self, like: Vector, *, key: PRNGKey) -> dict[str, Array]:
        first, second = jr.split(key)
        u = 0.01 * jr.normal(first, like.shape, like.dtype)
        w = jr.normal(second, like.shape, like.dtype) / jnp.sqrt(
            jnp.asarray(like.size, like.dtype)
        )
        return {"u": u, "w": w, "b": jnp.zeros((), like.dtype)}

    def apply(self, params: dict[str, Array], x: Vector) -> tuple[Vector, Scalar]:
        u, slope, tanh = self._at(params, x)
        return x + u * tanh, jnp.log1p(slope * (u @ params["w"]))

    def push(self, params: dict[str, Array], x: Vector, force: Vector) -> Vector:
        u, slope, tanh = self._at(params, x)
        w = params["w"]
        volume = 1 + slope * (u @ w)
        force = force + 2 * tanh * slope * (u @ w) / volume * w
        return force - slope * (u @ force) / volume * w

    def _at(self, params, x):
        u, w = params["u"], params["w"]
        product, square = w @ u, w @ w + 1e-12
        u = u + (jax.nn.softplus(product) - 1 - product) * w / square
        tanh = jnp.tanh(w @ x + params["b"])
        return u, 1 - tanh**2, tanh


class Radial(AbstractLayer):
    """`x + b (x - c) / (a + |x - c|)`, with `b > -a` so that it can be inverted.

    References:
        Rezende, Mohamed (2015), arXiv:1505.05770, equation 14 and appendix A.2.
    """

    def init(self, like: Vector, *, key: PRNGKey) -> dict[str, Array]:
        # softplus of `a` and of `b` are both 1: then the map is the identity.
        one = jnp.log(jnp.expm1(jnp.ones((), like.dtype)))
        return {"centre": jr.normal(key, like.shape, like.dtype), "a": one, "b": one}

    def apply(self, params: dict[str, Array], x: Vector) -> tuple[Vector, Scalar]:
        b, near, _, across, along, away = self._at(params, x)
        return x + b * near * away, (x.size - 1) * jnp.log(across) + jnp.log(along)

    def push(self, params: dict[str, Array], x: Vector, force: Vector) -> Vector:
        b, near, distance, across, along, away = self._at(params, x)
        a = jax.nn.softplus(params["a"])
        outward = away / distance
        slope = (
            x.size - 1
        ) * b / across + 2 * a * b * near / along  # by the distance, over -h^2
        force = force + slope * near**2 * outward
        return force / across + (1 / along - 1 / across) * (outward @ force) * outward

    def _at(self, params, x):
        a = jax.nn.softplus(params["a"])
        b = jax.nn.softplus(params["b"]) - a
        away = x - params["centre"]
        distance = jnp.sqrt(away @ away + jnp.finfo(x.dtype).tiny)
        near = 1 / (a + distance)
        return b, near, distance, 1 + b * near, 1 + a * b * near**2, away


class Flow(AbstractScaled):
    """Standard normal noise through layers, then scaled and shifted by coordinate.

    It has no entropy in closed form: `PathDerivative`, `TotalDerivative` or `ScoreFunction`.

    Attributes:
        layer: `Planar()` or `Radial()`; with flowjax `Coupling(...)`, `Autoregressive(...)`.
        depth: Layers.
        initial_scale: Standard deviation at the start.
    """

    layer: AbstractLayer = eqx.field(default=Planar(), converter=part("layer", AbstractLayer))
    depth: int = eqx.field(static=True, default=8, converter=whole("depth", least=1))
    initial_scale: float = eqx.field(default=0.1, converter=positive("initial_scale"))
    scale: str = eqx.field(default="exp", init=False)

    def bind(self, layout: Layout) -> "Flow":
        """Itself; a layer that cannot be of this size says so."""
        like = jnp.zeros(sum(part[1] for part in layout))
        jax.eval_shape(lambda key: self.layer.init(like, key=key), jr.key(0))
        return self

    def noise(self, like: Vector, num: int, *, key: PRNGKey) -> Array:
        return jr.normal(key, (num, like.size), like.dtype)

    def others(self, location: Vector) -> dict[str, PyTree]:
        keys = jr.split(key_of(location), self.depth)
        return {"layers": jax.vmap(lambda k: self.layer.init(location, key=k))(keys)}

    def white(self, params: dict[str, PyTree], noise: Vector) -> Vector:
        return self._through(params, noise)[0]

    def mixed(self, params: dict[str, PyTree], step: Vector) -> Vector:
        return step

    def log_prob(self, params: dict[str, PyTree], noise: Vector) -> Scalar:
        return normal_log_prob(params["log_scale"], noise) - self._through(params, noise)[1]

    def score(self, params: dict[str, PyTree], noise: Vector) -> Vector:
        def one(carry, own):
            x, force = carry
            return (self.layer.apply(own, x)[0], self.layer.push(own, x, force)), None

        (_, force), _ = jax.lax.scan(one, (noise, -noise), params["layers"])
        return force * jnp.exp(-params["log_scale"])

    def entropy(self, params: dict[str, PyTree]) -> Scalar:
        raise ValueError("`Flow` has no entropy in closed form: use `PathDerivative()`.")

    def describe(self, params: dict[str, PyTree]) -> dict[str, PyTree]:
        scale = jnp.exp(params["log_scale"])
        return {"loc": params["loc"], "scale": scale, "layers": params["layers"]}

    def _through(self, params, noise):
        def one(carry, own):
            x, total = carry
            y, log_det = self.layer.apply(own, x)
            return (y, total + log_det), None

        start = (noise, jnp.zeros((), noise.dtype))
        return jax.lax.scan(one, start, params["layers"])[0]
