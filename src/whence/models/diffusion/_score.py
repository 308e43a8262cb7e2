"""Scores that are learned: a network, and denoising score matching.

The score of noisy data is the regression of minus the whitened noise on the noisy data: the
network that minimises

    E | V(t)^(1/2)' s(t, x_t) + z |^2,    x_t = c + M(t) (x_0 - c) + V(t)^(1/2) z,  z ~ N(0, I),

over times, data and noise is the score of `x_t`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PyTree

from ...core._convert import positive, whole
from ...core._types import PRNGKey, Scalar
from .._fit import AbstractFit
from ._noise import (
    AbstractNoise,
    AbstractScaledNoise,
    Vector,
    require_noise,
    times,
    warn_of_units,
)


class ScoreNetwork(eqx.Module):
    """A network of time and place that predicts the noise, as a score.

    Inputs and output are scaled by the noise, with centre `c` and scale `s`: the score is
    `-net((place - c) / sqrt(s^2 M(t)^2 + V(t)), time) / sqrt(V(t))`, with time by sines and
    cosines of octaves.

    Attributes:
        noise: The noise.
        net: A perceptron.
        octaves: Of time.
    """

    noise: AbstractScaledNoise
    net: eqx.nn.MLP
    octaves: int = eqx.field(static=True)

    def __init__(
        self,
        noise: AbstractNoise,
        dim: Any,
        *,
        width: Any = 64,
        depth: Any = 3,
        octaves: Any = 4,
        key: PRNGKey,
    ):
        """Make a network with random weights.

        Args:
            noise: The noise.
            dim: Dimension of the data.
            width: Of hidden layers.
            depth: Hidden layers.
            octaves: Of time.
            key: For the weights.

        Raises:
            ValueError: If a number is not positive, or the noise has no `scale`.
        """
        sizes = {"dim": dim, "width": width, "depth": depth, "octaves": octaves}
        dim, width, depth, octaves = (int(whole(n, least=1)(x) or 0) for n, x in sizes.items())
        if not isinstance(noise, AbstractScaledNoise):
            raise ValueError(
                "`noise` of a `ScoreNetwork` must be the same in all directions; got "
                f"{type(noise).__name__}. Write a module with `__call__(t, x)`."
            )
        self.noise, self.octaves = noise, octaves
        made = eqx.nn.MLP(dim + 2 * octaves, dim, width, depth, jax.nn.silu, key=key)
        self.net = made

    def __call__(self, t: Scalar, x: Vector) -> Vector:
        """Return the score."""
        variance = self.noise.covariance(t)
        scale = jnp.sqrt(
            (jnp.asarray(self.noise.scale, x.dtype) * self.noise.mean(t)) ** 2 + variance
        )
        angle = jnp.pi * t / self.noise.horizon * 2.0 ** jnp.arange(self.octaves, dtype=x.dtype)
        features = jnp.concatenate(
            [self.noise.apart(x) / scale, jnp.sin(angle), jnp.cos(angle)]
        )
        return -self.net(features) / jnp.sqrt(variance)


class ScoreMatching(AbstractFit):
    """The training of a score by denoising score matching; for `whence.train` with `Adam`.

    `network.score(state.params)` is the trained score. It is not to be trusted below the
    smallest time it was trained at. Data in units far from those of the noise are told of:
    `noise.fitted(data)` has theirs.

    Attributes:
        network: A module with `__call__(t, x)`, such as `ScoreNetwork`.
        noise: The noise.
        data: `(row, dim)`.
        earliest: Smallest time, as a share of the horizon; there the noise is near zero.

    References:
        Vincent (2011), "A connection between score matching and denoising autoencoders",
        doi:10.1162/NECO_a_00142.
        Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole (2021), "Score-based generative
        modeling through stochastic differential equations", ICLR.
    """

    network: Any
    noise: AbstractNoise
    data: Float[Array, "row dim"] = eqx.field(converter=jnp.asarray)
    earliest: float = eqx.field(static=True, default=1e-3, converter=positive("earliest"))

    def __check_init__(self):
        if self.data.ndim != 2 or 0 in self.data.shape:
            raise ValueError(f"`data` must have shape (row, dim); got {self.data.shape}.")
        if not np.isfinite(np.asarray(self.data)).all():
            row = int(np.argwhere(~np.isfinite(np.asarray(self.data)))[0][0])
            raise ValueError(f"`data` must be finite; got {self.data[row]} in row {row}.")
        place = jax.ShapeDtypeStruct(self.data.shape[1:], self.data.dtype)
        time = jax.ShapeDtypeStruct((), self.data.dtype)
        got = jax.eval_shape(self.network, time, place).shape
        if got != place.shape:
            raise ValueError(
                f"`network(t, x)` must return the shape of a row, {place.shape}; got {got}."
            )
        require_noise("network", self.network, self.noise)
        data = np.asarray(self.data)
        spread = data.std(axis=0)
        known = np.where(spread > 0, spread, np.inf)  # a constant is learned well enough
        warn_of_units("data", self.noise, data.mean(axis=0), spread, known)

    @property
    def num_data(self) -> int:
        return self.data.shape[0]

    def start(self, *, key: PRNGKey) -> PyTree:
        return eqx.filter(self.network, eqx.is_inexact_array)

    def score(self, params: PyTree) -> Any:
        """Return the network with trained parameters."""
        return eqx.combine(jax.tree.map(jnp.asarray, params), self.network)

    def loss(self, params: PyTree, rows: Array | None, *, key: PRNGKey) -> Scalar:
        network = self.score(params)
        data = self.data if rows is None else self.data[rows]
        key_time, key_noise = jr.split(key)
        low, high = self.earliest * self.noise.horizon, self.noise.horizon
        # One time in each of as many equal pieces: less noise than independent ones.
        pieces = jnp.arange(len(data), dtype=data.dtype) + jr.uniform(key_time, data.shape[:1])
        moments = low + (high - low) * pieces / len(data)
        noise = jr.normal(key_noise, data.shape, data.dtype)

        def one(t, x, z):
            spread = self.noise.covariance(t)
            root = jnp.linalg.cholesky(spread) if jnp.ndim(spread) == 2 else jnp.sqrt(spread)
            moved = times(self.noise.mean(t), self.noise.apart(x)) + times(root, z)
            score = network(t, moved + jnp.asarray(self.noise.centre, x.dtype))
            turned = root.T @ score if jnp.ndim(root) == 2 else root * score
            return jnp.sum((turned + z) ** 2)

        return jax.vmap(one)(moments, data, noise).mean()
