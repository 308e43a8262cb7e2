"""Encoders and decoders as ordinary Equinox modules: dense ones, and layouts of papers.

Each reads one datum. Images are `(height, width)` or `(channel, height, width)`; a decoder
gives what the likelihood asks for (logits, not rates). Equinox starts layers as PyTorch does,
uniform on `1 / sqrt(fan_in)` to either side.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from ...core import PRNGKey, one_of, whole
from ...core._key import seeded


class Reshape(eqx.Module):
    """One array in another shape."""

    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x: Array, *, key: PRNGKey | None = None) -> Array:
        """Return `x` in the shape."""
        return jnp.reshape(x, self.shape)


class Networks(eqx.Module):
    """An encoder, from a datum to its code; a decoder, to what the likelihood reads."""

    encoder: Any
    decoder: Any

    def __call__(self, x: Array) -> Array:
        """Return the decoder's output for one datum."""
        return self.decoder(self.encoder(x))

    def __iter__(self):
        """Give the encoder, then the decoder."""
        return iter((self.encoder, self.decoder))


class _Layout(NamedTuple):
    """Channels of both networks, and (kernel, stride, padding) of each layer."""

    shape: tuple[int, ...]
    encoder: tuple[int, ...]
    encoding: tuple[int, int, int]
    start: tuple[int, int, int]
    decoder: tuple[int, ...]
    decoding: tuple[tuple[int, int, int], ...]


def _small(width: int) -> _Layout:
    channels, decoding = (width, 2 * width, 2 * width, 4 * width), ((4, 1, 0),) * 2
    start, up = (4 * width, 7, 7), (2 * width, 2 * width, 1)
    return _Layout((1, 28, 28), channels, (4, 2, 1), start, up, (*decoding, (4, 2, 0)))


_LARGE = (3, 64, 64), (64, 128, 256, 512), (5, 2, 0), (512, 8, 8), (256, 128, 3)
_UP = ((5, 2, 2), (5, 2, 1), (4, 2, 0))
# As in the authors' code.
LAYOUTS = {"mnist": _small(32), "faces": _small(64), "celeba": _Layout(*_LARGE, _UP)}


LEAKY = eqx.nn.Lambda(jax.nn.leaky_relu)  # of slope 0.01


@seeded
def dense(
    shape: Sequence[int],
    latent: int,
    hidden: Sequence[int] = (128,),
    *,
    key: PRNGKey,
    codes: int = 1,
    outputs: Sequence[int] | None = None,
) -> Networks:
    """Make a dense encoder, and a decoder with the same hidden layers in reverse.

    Args:
        shape: Of one datum.
        latent: Numbers in a code, at least 1.
        hidden: Widths of hidden layers of the encoder, leaky ReLU between them.
        key: A typed key.
        codes: How many numbers the encoder gives for each one of a code: 2 for
            `VariationalAutoencoder`, means and log standard deviations.
        outputs: Shape that the decoder gives, by default that of a datum.
    """
    latent, codes = whole("latent", least=1)(latent), whole("codes", least=1)(codes)
    hidden, shape = [whole("hidden", least=1)(width) for width in hidden], tuple(shape)
    outputs = shape if outputs is None else tuple(outputs)
    key_encoder, key_decoder = jr.split(key)
    down = [math.prod(shape), *hidden, codes * latent]
    up = [latent, *reversed(hidden), math.prod(outputs)]
    encoder = eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), *_dense(down, key_encoder)])
    decoder = eqx.nn.Sequential([*_dense(up, key_decoder), Reshape(outputs)])
    return Networks(encoder, decoder)


def _dense(widths: list[int], key: PRNGKey) -> list:
    layers: list = []
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        layers += [LEAKY] * (i > 0)
        layers.append(eqx.nn.Linear(a, b, key=jr.fold_in(key, i)))
    return layers


@seeded
def convolutional(
    layout: str, latent: int = 50, *, key: PRNGKey, codes: int = 1, channel: bool = False
) -> Networks:
    """Make the convolutional networks of Tran et al. (2021), arXiv:2106.06245.

    Args:
        layout: `"mnist"` and `"faces"` for images of 28 by 28, `"celeba"` for `(3, 64, 64)`.
        latent: Numbers in a code.
        key: A typed key.
        codes: As for `dense`.
        channel: Whether grey images have an axis for their channel, `(1, 28, 28)`.
    """
    plan = LAYOUTS[one_of("layout", tuple(LAYOUTS))(layout)]
    latent, codes = whole("latent", least=1)(latent), whole("codes", least=1)(codes)
    keys = iter(jr.split(key, 16))
    grey = plan.shape[0] == 1 and not channel
    encoder: list = [Reshape(plan.shape)] if grey else []
    for a, b in zip((plan.shape[0], *plan.encoder), plan.encoder):
        kernel, stride, padding = plan.encoding
        conv = eqx.nn.Conv2d(a, b, kernel, stride, padding, key=next(keys))
        encoder += [conv, LEAKY]
    read = eqx.nn.Linear(plan.encoder[-1], codes * latent, key=next(keys))
    encoder += [eqx.nn.Lambda(jnp.ravel), read]
    first = eqx.nn.Linear(latent, math.prod(plan.start), key=next(keys))
    decoder: list = [first, LEAKY, Reshape(plan.start)]
    for i, (a, b) in enumerate(zip((plan.start[0], *plan.decoder), plan.decoder)):
        kernel, stride, padding = plan.decoding[i]
        decoder += [LEAKY] * (i > 0)
        conv = eqx.nn.ConvTranspose2d(a, b, kernel, stride, padding=padding, key=next(keys))
        decoder.append(conv)
    decoder += [Reshape(plan.shape[1:])] if grey else []
    return Networks(eqx.nn.Sequential(encoder), eqx.nn.Sequential(decoder))
