"""What a decoder's output says of a datum: the laws of pixels."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array

from ...core._convert import one_of, positive, whole
from ._continuous_bernoulli import ContinuousBernoulliDistribution

Shape = tuple[int, ...]


class AbstractLikelihood(eqx.Module):
    """The law of data given what a decoder gives for them.

    `distribution` reads outputs, which may be logits. What is averaged over posterior draws,
    shown as an image and compared with data is the `parameter` on the scale of the data (a
    rate, a mean), of which `law` is the law again.
    """

    @property
    @abc.abstractmethod
    def priors(self) -> dict[str, dist.Distribution]:
        """Priors of latents of the likelihood itself, by name."""

    @abc.abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of a decoder's output for one datum of this shape."""

    @abc.abstractmethod
    def distribution(self, output: Array, noise: dict[str, Array]) -> dist.Distribution:
        """Return the law of data, rows as its batch axis, given outputs of many rows."""

    @abc.abstractmethod
    def parameter(self, output: Array) -> Array:
        """Return outputs on the scale on which they may be averaged."""

    @abc.abstractmethod
    def law(self, parameter: Array, noise: dict[str, Array]) -> dist.Distribution:
        """Return the law of data given a parameter."""

    @abc.abstractmethod
    def image(self, parameter: Array) -> Array:
        """Return what a parameter looks like: an array of the shape of data."""

    @abc.abstractmethod
    def read(self, x: Array) -> Array:
        """Return data as an encoder reads them: numbers of about unit size."""

    @abc.abstractmethod
    def check(self, x: np.ndarray) -> None:
        """Raise `ValueError` if values of `x` cannot be data."""


def _rows(law: Any) -> dist.Distribution:
    return law.to_event(len(law.batch_shape) - 1)


def _check(x: np.ndarray, good: np.ndarray, rule: str, hint: str = "") -> None:
    if not good.all():
        place = np.unravel_index(np.argmin(good), good.shape)
        row = int(place[0])
        raise ValueError(f"`x` must be {rule}; got {x[place]:g} in row {row}.{hint}")


def _logit(rate: Array) -> Array:
    # Rates may be as small as numbers are, but round to 1 where they are near it.
    info = jnp.finfo(rate.dtype)
    rate = jnp.clip(rate, info.tiny, 1 - info.eps / 2)
    return jnp.log(rate) - jnp.log1p(-rate)


class AbstractPixelLikelihood(AbstractLikelihood):
    """Of numbers each of which has a number of the output, and a parameter that is an image."""

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def image(self, parameter):
        return parameter

    def read(self, x):
        return jnp.asarray(x, jnp.result_type(float))


class AbstractLogitLikelihood(AbstractPixelLikelihood):
    """Pixels of which a decoder gives the logit of a rate, without latents of its own."""

    @property
    def priors(self):
        return {}

    def parameter(self, output):
        return jax.nn.sigmoid(output)

    def law(self, parameter, noise):
        return self.distribution(_logit(parameter), noise)


class ContinuousBernoulli(AbstractLogitLikelihood):
    """Pixels anywhere between 0 and 1; a decoder gives the logit of each.

    Its parameter is the rate `sigmoid(logit)`, which is what is usually shown, not the mean.

    References:
        Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli: fixing a pervasive error
        in variational autoencoders, arXiv:1907.06845.
    """

    def distribution(self, output, noise):
        return _rows(ContinuousBernoulliDistribution(output))

    def check(self, x):
        hint = " Divide 8-bit images by 255." if x.max() > 2 else ""
        _check(x, (x >= 0) & (x <= 1), "between 0 and 1 for ContinuousBernoulli", hint)


class Bernoulli(AbstractLogitLikelihood):
    """Pixels of 0 or 1; a decoder gives the logit of each."""

    def distribution(self, output, noise):
        return _rows(dist.Bernoulli(logits=output))

    def check(self, x):
        hint = " Use ContinuousBernoulli() for grey values, or make them binary."
        _check(x, (x == 0) | (x == 1), "0 or 1 for Bernoulli", hint)


class Gaussian(AbstractPixelLikelihood):
    """Real numbers with Gaussian noise; a decoder gives the mean of each.

    Attributes:
        scale: Standard deviation of the noise, or its prior.
    """

    scale: Any

    def __init__(self, scale: Any = 1.0, *, shape: Shape | None = None):
        """Check and keep the scale.

        Args:
            scale: A positive number; a numpyro distribution, its prior; or `"global"` or
                `"pixel"`, one or one for each number of a datum, with the prior
                LogNormal(log 0.3, 1).
            shape: Of a datum, for `"pixel"`.
        """
        if isinstance(scale, str):
            scale = one_of("scale", ("global", "pixel"), kind=dist.Distribution)(scale)
            if scale == "pixel" and shape is None:
                raise ValueError("`shape` must be that of one datum for 'pixel'; got None.")
            loc = jnp.full(shape if scale == "pixel" and shape else (), np.log(0.3))
            scale = dist.LogNormal(loc, 1.0)
        if not isinstance(scale, dist.Distribution):
            scale = jnp.asarray(positive("scale")(scale))
        self.scale = scale

    @property
    def priors(self):
        return {"sigma": self.scale} if isinstance(self.scale, dist.Distribution) else {}

    def distribution(self, output, noise):
        sigma: Any = noise.get("sigma", self.scale)
        return _rows(dist.Normal(output, jnp.broadcast_to(sigma, output.shape)))

    def parameter(self, output):
        return output

    def law(self, parameter, noise):
        return self.distribution(parameter, noise)

    def check(self, x):
        """Accept all real numbers."""


class Categorical(AbstractLikelihood):
    """Whole numbers from 0 to `levels - 1`; a decoder gives logits `(levels, *shape)`.

    Attributes:
        levels: How many values a pixel can have.
    """

    levels: int = eqx.field(converter=whole("levels", least=2))

    @property
    def priors(self):
        return {}

    def output_shape(self, shape: Shape) -> Shape:
        return (self.levels, *shape)

    def distribution(self, output, noise):
        return _rows(dist.Categorical(logits=jnp.moveaxis(output, 1, -1)))

    def parameter(self, output):
        return jax.nn.softmax(jnp.moveaxis(output, 1, -1), axis=-1)

    def law(self, parameter, noise):
        return _rows(dist.Categorical(probs=parameter))

    def image(self, parameter):
        return parameter @ jnp.arange(self.levels, dtype=parameter.dtype)

    def read(self, x):
        return jnp.asarray(x, jnp.result_type(float)) / (self.levels - 1)

    def check(self, x):
        name = f"Categorical({self.levels})"
        if not np.issubdtype(x.dtype, np.integer):
            raise ValueError(f"`x` must be whole numbers for {name}; got {x.dtype}.")
        _check(x, (x >= 0) & (x < self.levels), f"from 0 to {self.levels - 1} for {name}")
