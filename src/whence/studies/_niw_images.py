"""Omniglot, small: characters of one set to learn from, of another to be told apart."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..diagnostics import reliability
from ..models import niw
from ..running import train

WAYS, DRAWINGS, RATE, WIDTH = 5, 20, 2e-3, 64


class Convolution(eqx.Module):
    """3 x 3, stride 2, then ReLU, by slices and a product of matrices.

    Tasks with kernels of their own are a batch of products so, and not a convolution in
    groups, which is slow on a CPU.
    """

    weight: jax.Array
    bias: jax.Array

    def __init__(self, inputs: int, outputs: int, *, key: Any):
        self.weight = jr.normal(key, (9 * inputs, outputs)) * (2 / (9 * inputs)) ** 0.5
        self.bias = jnp.zeros(outputs)

    def __call__(self, x):
        """Return `((size + 1) // 2, (size + 1) // 2, outputs)` for `(size, size, inputs)`."""
        size = (len(x) + 1) // 2
        x = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        at = [slice(i, i + 2 * size - 1, 2) for i in range(3)]
        patches = jnp.concatenate([x[i, j] for i in at for j in at], axis=-1)
        return jax.nn.relu(patches @ self.weight + self.bias)


class ConvNet(eqx.Module):
    """Three convolutions of stride 2 on 14 x 14 pixels, a linear layer, and gains of it."""

    layers: list
    linear: eqx.nn.Linear
    gains: jax.Array

    def __init__(self, *, key: Any):
        keys = jr.split(key, 4)
        sizes = [(1, 32), (32, 32), (32, 32)]
        self.layers = [Convolution(a, b, key=k) for (a, b), k in zip(sizes, keys)]
        self.linear = eqx.nn.Linear(128, WIDTH, key=keys[3])
        self.gains = jnp.ones(WIDTH)

    def __call__(self, image):
        """Return the embedding of an image of shape `(14, 14)`."""
        x = image[..., None]
        for layer in self.layers:
            x = layer(x)
        return self.gains * self.linear(x.reshape(-1))


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


class Score(NamedTuple):
    """How well new drawings are told apart."""

    right: float  # share of them
    error: float  # standard error of that, over tasks
    loss: float  # log loss of one, in nats
    off: float  # mean distance of confidence from accuracy


def score_of(adapt: Any, images: np.ndarray, shots: int, number: int, seed: int) -> Score:
    """Score predictions on tasks of characters that were not learned from.

    Args:
        adapt: From a support set to an `AdaptedTask`.
        images: Of those characters.
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
            predicted = adapt(x[first], y[first]).predict(x[~first], draws=64)
            return predicted.mean, predicted.log_prob(y[~first])

        return jax.lax.map(one, (x, y), batch_size=4)

    probabilities, log_prob = map(np.asarray, every(x, y))
    labels = np.asarray(y)[:, ~first]
    right = (probabilities.argmax(-1) == labels).mean(1)
    off = reliability(probabilities.reshape(-1, WAYS), labels.ravel()).error
    error = right.std(ddof=1) / number**0.5
    return Score(float(right.mean()), float(error), float(-log_prob.mean()), float(off))


def learned_and_judged(
    data: Path, shots: int, name: str, steps: int, number: int, seed: int
) -> Score:
    """Learn by one of the rules from one set of characters, and judge it on another.

    Args:
        data: Folder of both sets.
        shots: Drawings of each character to adapt to.
        name: Of the rule.
        steps: Of learning.
        number: Of test tasks.
        seed: Of learning and of the tasks.
    """
    meta, procedure = rules(shots, steps)[name]
    tasks = episodes(read(data, "omniglot_small1", turned=True), 4, shots + 5)
    model = train(meta.on(tasks), procedure, key=seed, progress=False).state.model
    if isinstance(procedure, niw.PointMeta):
        adapted = partial(procedure.adapt, model)
    else:
        adapted = partial(niw.adapt, model, local=procedure.local)
    test = read(data, "omniglot_small2", turned=False)
    return score_of(adapted, test, shots, number, seed)


def rules(shots: int, steps: int) -> dict[str, tuple[niw.NIWMeta, Any]]:
    """Return models and procedures on one network, by name; linear heads are put on it.

    Args:
        shots: Drawings of each character to adapt to.
        steps: Of learning.
    """
    key_net, key_head = jr.split(jr.key(0))
    embed = ConvNet(key=key_net)
    label = eqx.nn.Sequential([eqx.nn.Lambda(embed), eqx.nn.Linear(WIDTH, WAYS, key=key_head)])
    linear = niw.Categorical(WAYS)
    embedding = niw.NIWMeta(embed, niw.Prototypes(WAYS), random=lambda net: net.gains)
    head = niw.NIWMeta(label, linear, random=lambda net: net.layers[-1])
    whole = niw.NIWMeta(label, linear)
    rule = {"steps": steps, "batch": 4, "learning_rate": RATE}
    point = partial(niw.PointMeta, support=shots, **rule)
    once, newton, few = niw.GGNLaplace(0), niw.GGNLaplace(0, 2), (shots, shots)
    laplace = partial(niw.OneTimeIterates, **rule)
    return {
        "prototype network": (embedding, point(rule="prototypes")),
        "NIW, gains of prototypes": (embedding, laplace(local=once, support=few, pairs=4)),
        "NIW, linear head": (head, laplace(local=newton, support=few, pairs=16)),
        "NIW, linear head, by evidence": (
            head,
            laplace(local=newton, points=(1, shots + 5), pairs=4),
        ),
        "MAML, 5 steps": (whole, point(rule="maml", inner_rate=0.1)),
        "iMAML, 20 steps": (
            whole,
            point(rule="imaml", inner_rate=0.1, inner_steps=20, proximity=0.1),
        ),
        "Reptile, 5 steps": (whole, point(rule="reptile", inner_rate=0.1)),
    }
