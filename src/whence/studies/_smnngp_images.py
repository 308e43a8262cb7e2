"""Digits by regression on one-hot labels: accuracy, and what is unlike the training images."""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy import ndimage
from scipy.special import ndtr

from ..diagnostics import entropy, reliability, separation
from ..models.nngp import (
    AbstractLaw,
    BurrXII,
    Dense,
    InverseGamma,
    Jeffreys,
    PointMass,
    ReLU,
    ScaleMixture,
    Serial,
)
from ._study import Table

_DEPTH = 4
_NOISE = 1e-3


class Images(NamedTuple):
    """Digits to learn from and to be tested on, pixels from 0 to 1."""

    train: np.ndarray  # shape `(rows, 28, 28)`
    labels: np.ndarray  # of `train`
    test: np.ndarray  # shape `(rows, 28, 28)`
    test_labels: np.ndarray  # of `test`
    other: np.ndarray  # images of something else


def read(data: Path, num_train: int, num_test: int, *, seed: int) -> Images:
    """Read MNIST and Omniglot, in a random order."""
    files = [data / "mnist_test10k.npz", data / "omniglot_small1.npz"]
    for file in files:
        if not file.is_file():
            raise ValueError(f"`data` must hold {file.name}; {data} does not.")
    rng = np.random.default_rng(seed)
    with np.load(files[0]) as digits, np.load(files[1]) as letters:
        order = rng.permutation(len(digits["labels"]))[: num_train + num_test]
        pixels = digits["images"][order] / 255
        labels = digits["labels"][order].astype(int)
        other = letters["images"][rng.permutation(len(letters["images"]))[:num_test]] / 255
    return Images(
        pixels[:num_train], labels[:num_train], pixels[num_train:], labels[num_train:], other
    )


def corruptions(images: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Return spoilt copies of images, by what was done to them.

    References:
        Mu and Gilmer (2019), MNIST-C, arXiv:1906.02337, for kinds of corruption; the
        strengths here are our own.
    """
    rng = np.random.default_rng(seed)
    photons, share, degrees = 10, 0.15, 30
    salt = rng.uniform(size=images.shape)
    impulse = np.where(salt < share / 2, 0.0, np.where(salt > 1 - share / 2, 1.0, images))
    angles = degrees * rng.choice([-1, 1], len(images))
    turned = [
        ndimage.rotate(image, angle, reshape=False, order=1)
        for image, angle in zip(images, angles)
    ]
    return {
        f"shot noise, {photons} photons": np.clip(
            rng.poisson(images * photons) / photons, 0, 1
        ),
        f"impulse noise, {share:.0%} of pixels": impulse,
        f"rotation by {degrees} degrees": np.clip(np.stack(turned), 0, 1),
    }


def study(images: Images, *, seed: int) -> tuple[list[Table], dict]:
    """Return tables, and the reliability of each law's predictions."""
    x = _flat(images.train)
    y = np.eye(10)[images.labels] - 0.1
    typical = float(np.mean(_network(1.0).diagonal(x).nngp))
    network = _network(1 / typical)
    given = ScaleMixture(network, Jeffreys(), _NOISE).condition(x, y)
    fitted = float(given.quadratic) / given.size
    laws: dict[str, AbstractLaw] = {
        "Gaussian, scale 1": PointMass(1.0),
        "Gaussian, scale by evidence": PointMass(fitted),
        "IG(2, 1)": InverseGamma(2.0, 1.0),
        "Burr(2, 1)": BurrXII(2.0, 1.0),
    }
    sets = {"clean": images.test, **corruptions(images.test, seed=seed)}
    moments = {name: _moments(given, _flat(test)) for name, test in sets.items()}
    moments["other"] = _moments(given, _flat(images.other))
    quality, outside, curves = [], [], {}
    truth = np.eye(10)[images.test_labels] - 0.1
    for law_name, law in laws.items():
        scales = _scales(law, given)
        probabilities = {n: _probabilities(*m, scales) for n, m in moments.items()}
        for name in sets:
            loc, deviation = moments[name]
            beside = jnp.broadcast_to(deviation[:, None], loc.shape)
            each = law.marginals(given.size, given.quadratic, jnp.asarray(loc), beside)
            nll = -np.asarray(each.log_prob(truth)).mean()
            found = reliability(probabilities[name], images.test_labels)
            right = np.mean(loc.argmax(1) == images.test_labels)
            quality.append([law_name, name, f"{right:.3f}", f"{nll:.3f}", f"{found.error:.3f}"])
            if name == "clean":
                curves[law_name] = found
        for score in ("entropy", "scale"):
            values = {
                name: entropy(probabilities[name]) if score == "entropy" else moments[name][1]
                for name in ("clean", "other")
            }
            told = separation(values["clean"], values["other"])
            outside.append([law_name, score, *(f"{value:.3f}" for value in told)])
    return [
        Table(
            "images",
            f"Digits, {len(x)} to learn from, {len(truth)} to test: regression on one-hot "
            f"labels, ReLU network with {_DEPTH} hidden layers; NLL per output in nats",
            ("law of the scale", "images", "accuracy", "NLL", "ECE"),
            quality,
        ),
        Table(
            "outside",
            "Digits against Omniglot letters, by the entropy of the predicted class or by the "
            "predictive scale",
            ("law of the scale", "score", "AUROC", "AUPR", "FPR at 95%"),
            outside,
        ),
    ], curves


def _network(readout: float) -> Serial:
    return Serial(*[Dense(2.0, 0.01), ReLU()] * _DEPTH, Dense(readout))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) * 2.0 - 1.0


def _moments(given, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return locations `(rows, classes)` and deviations `(rows,)` for a scale of 1."""
    each = given.observation_marginals(x)
    unit = np.sqrt(float(given.quadratic) / given.size)  # Jeffreys' t has this scale
    return np.asarray(each.loc), np.asarray(each.scale)[:, 0] / unit


def _scales(law: AbstractLaw, given, num: int = 20) -> np.ndarray:
    """Return equally weighted roots of the scale given the data."""
    draws = law.posterior(given.size, given.quadratic).sample(jr.key(0), (num,))
    return np.sqrt(np.asarray(draws))


def _probabilities(loc: np.ndarray, deviation: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """Return the probability of each output to be the largest, shape `(rows, classes)`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    total = np.zeros_like(loc)
    for root in roots:
        gap = (loc[:, :, None] - loc[:, None, :]) / (root * deviation)[:, None, None]
        for node, weight in zip(nodes, weights):
            below = ndtr(gap + node)
            # An output is not compared with itself.
            diagonal = ndtr(node)
            total += weight * np.prod(below, 2) / diagonal
    return total / total.sum(1, keepdims=True)
