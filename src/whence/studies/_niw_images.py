"""Omniglot, small: characters of one set to learn from, of another to be told apart."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..models import niw

WAYS, DRAWINGS = 5, 20


class ConvNet(eqx.Module):
    """Three convolutions of stride 2 on 14 x 14 pixels, and a linear layer."""

    layers: list
    head: eqx.nn.Linear

    def __init__(self, outputs: int, *, key: Any):
        keys = jr.split(key, 4)
        sizes = [(1, 16), (16, 32), (32, 32)]
        self.layers = [
            eqx.nn.Conv2d(a, b, 3, stride=2, padding=1, key=k) for (a, b), k in zip(sizes, keys)
        ]
        self.head = eqx.nn.Linear(128, outputs, key=keys[3])

    def __call__(self, image):
        """Return outputs for an image of shape `(14, 14)`."""
        x = image[None]
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return self.head(x.reshape(-1))


def read(data: Path, name: str, *, turned: bool) -> np.ndarray:
    """Return images `(character, drawing, 14, 14)` from 0 to 1, with those turned, if asked."""
    file = data / f"{name}.npz"
    if not file.is_file():
        raise ValueError(f"`data` must hold {name}.npz (images, labels); {data} does not.")
    with np.load(file) as stored:
        images, labels = stored["images"], stored["labels"]
    order = np.argsort(labels, kind="stable")
    images = images[order].reshape(-1, DRAWINGS, 28, 28).astype(np.float32) / 255
    images = images.reshape(*images.shape[:2], 14, 2, 14, 2).mean((3, 5))
    if not turned:
        return images
    return np.concatenate([np.rot90(images, k, (2, 3)) for k in range(4)])


def episodes(images: np.ndarray, tasks: int, each: int):
    """Return a function of a key that makes tasks of 5 characters, `each` drawings of each."""
    pictures = jnp.asarray(images)

    def one(key):
        key_class, key_drawing = jr.split(key)
        chosen = jr.choice(key_class, len(pictures), (WAYS,), replace=False)
        which = jax.vmap(lambda k: jr.permutation(k, DRAWINGS)[:each])(
            jr.split(key_drawing, WAYS)
        )
        x = pictures[chosen[:, None], which].reshape(WAYS * each, 14, 14)
        return x, jnp.repeat(jnp.arange(WAYS), each)

    return niw.Episodes(lambda key: jax.vmap(one)(jr.split(key, tasks)))


def accuracy(adapt: Any, images: np.ndarray, shots: int, number: int, seed: int):
    """Return mean accuracy on new tasks and its standard error, and the mean log loss.

    Args:
        adapt: From a support set to an `AdaptedTask`.
        images: Of characters not learned from.
        shots: Drawings of each character to adapt to.
        number: Of tasks.
        seed: Of tasks.
    """
    x, y = episodes(images, number, shots + 10).sample(jr.key(seed + 10_000))
    first = np.tile(np.arange(shots + 10) < shots, WAYS)

    @jax.jit
    def every(x, y):
        def one(pair):
            x, y = pair
            support, query = x[first], x[~first]
            predicted = adapt(support, y[first]).predict(query, draws=32)
            right = predicted.mean.argmax(1) == y[~first]
            return right.mean(), -predicted.log_prob(y[~first]).mean()

        return jax.lax.map(one, (x, y), batch_size=4)

    right, loss = map(np.asarray, every(x, y))
    return float(right.mean()), float(right.std(ddof=1) / number**0.5), float(loss.mean())


def rules(shots: int, steps: int):
    """Return models and procedures on one network, by name; each has 64 outputs or 5."""
    key = jr.key(0)
    embed, label = ConvNet(64, key=key), ConvNet(WAYS, key=key)
    prototypes, linear = niw.Prototypes(WAYS), niw.Categorical(WAYS)
    last = lambda net: net.head
    laplace = niw.GGNLaplace(steps=10)
    meta: dict[str, Any] = {"steps": steps, "batch": 4}
    return {
        "prototype network": (
            niw.NIWMeta(embed, prototypes, random=last),
            niw.PointMeta(rule="prototypes", support=shots, **meta),
        ),
        "MAML": (
            niw.NIWMeta(label, linear),
            niw.PointMeta(rule="maml", support=shots, inner_rate=0.1, **meta),
        ),
        "NIW, linear head": (
            niw.NIWMeta(label, linear, random=last, precision=1.0),
            niw.OneTimeIterates(local=laplace, points=(1, shots + 5), **meta),
        ),
    }
