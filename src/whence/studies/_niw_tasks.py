"""Sines and lines: tasks of two kinds, as functions of a key, and how well one is learned."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..models import niw
from ..models.nngp import Dense, Erf, InverseGamma, ReLU, ScaleMixture, Serial, Sin

NOISE, UNIT = 0.3, 2.5  # standard deviation of the noise; what inputs are divided by
SUPPORT, QUERY, POINTS, BATCH = 10, 100, 20, 25


class Score(NamedTuple):
    """Means over test tasks with their standard errors.

    Attributes:
        mse: Of new observations; 0.09, their variance, is the least.
        nll: Negative log density of one, in nats; 0.21 is the least.
        covered: Share inside central 90% intervals.
    """

    mse: tuple[float, float]
    nll: tuple[float, float]
    covered: float


def sine_line(key: Any, tasks: int = BATCH, points: int = POINTS):
    """Return `(x, y)` of tasks that are sines or lines, half of each.

    `A sin(x + p)` with A in (0.1, 5) and p in (0, pi), or `a x + b` with a and b in (-3, 3);
    x in (-5, 5), here divided by 2.5; noise of standard deviation 0.3.
    """
    keys = jr.split(key, 4)
    x = jr.uniform(keys[0], (tasks, points), minval=-5.0, maxval=5.0)
    u = jr.uniform(keys[1], (4, tasks, 1))
    sine = (0.1 + 4.9 * u[0]) * jnp.sin(x + jnp.pi * u[1])
    line = (6 * u[2] - 3) * x + 6 * u[3] - 3
    is_sine = jr.bernoulli(keys[2], 0.5, (tasks, 1))
    y = jnp.where(is_sine, sine, line) + NOISE * jr.normal(keys[3], x.shape)
    return x[..., None] / UNIT, y


def new_tasks(number: int, seed: int):
    """Return tasks never learned from, with support and query points."""
    return sine_line(jr.key(seed + 10_000), number, SUPPORT + QUERY)


def mlp(key: Any) -> eqx.nn.MLP:
    """Return the network of the published experiments: 1-40-40-1, ReLU, 1761 weights."""
    return eqx.nn.MLP(1, 1, 40, 2, key=key)


def variants(full: bool) -> dict[str, tuple[niw.NIWMeta, niw.OneTimeIterates]]:
    """Return models and how each is trained, by name."""
    steps = 8_000 if full else 200
    noise = niw.Gaussian(NOISE)
    net = mlp(jr.key(0))
    train = partial(niw.OneTimeIterates, steps=steps, batch=BATCH, points=(5, POINTS))
    diagonal = niw.GGNLaplace(structure="diagonal")
    head = {"random": lambda n: n.layers[-1], "covariance": "full", "precision": 1.0}
    once = niw.GGNLaplace(steps=0)
    return {
        "all weights, SGLD moments": (
            niw.NIWMeta(net, noise),
            train(local=niw.SGLDMoments(clip=(1e-4, 1e4))),
        ),
        "all weights, diagonal GGN": (niw.NIWMeta(net, noise), train(local=diagonal)),
        "all weights, full GGN": (niw.NIWMeta(net, noise), train(local=niw.GGNLaplace())),
        "low rank 8, full GGN": (
            niw.NIWMeta(net, noise, covariance="low_rank", rank=8),
            train(local=niw.GGNLaplace()),
        ),
        "head, full covariance": (
            niw.NIWMeta(net, noise, **head),
            train(local=once, pairs=4, learning_rate=3e-3),
        ),
        "head, two components": (
            niw.NIWMeta(net, noise, **head, components=2),
            train(local=once, pairs=4, learning_rate=3e-3),
        ),
    }


def score_of(predict: Any, number: int, seed: int) -> Score:
    """Score predictions on test tasks.

    Args:
        predict: From support inputs and data and query inputs to a `Prediction` or a numpyro
            distribution of each query point.
        number: Test tasks.
        seed: Of them.
    """
    x, y = new_tasks(number, seed)

    @jax.jit
    def every(x, y):
        def one(pair):
            x, y = pair
            predicted = predict(x[:SUPPORT], y[:SUPPORT], x[SUPPORT:])
            new = y[SUPPORT:]
            inside = jnp.abs(predicted.cdf(new).reshape(new.shape) - 0.5) < 0.45
            squares = (predicted.mean.reshape(new.shape) - new) ** 2
            return squares.mean(), -predicted.log_prob(new).mean(), inside.mean()

        return jax.lax.map(one, (x, y), batch_size=10)

    mse, nll, inside = map(np.asarray, every(x, y))
    return Score(_mean(mse), _mean(nll), float(inside.mean()))


def _mean(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def wide_networks() -> list[Serial]:
    """Return kernels of wide networks to choose among, for x of unit size."""
    return [
        Serial(*[Dense(w, b), activation] * depth, Dense())
        for depth in (1, 2)
        for activation, w, b in (
            (ReLU(), 2.0, 0.1),
            (ReLU(), 2.0, 1.0),
            (Erf(), 2.0, 0.1),
            (Erf(), 8.0, 1.0),
            (Sin(), 4.0, 0.5),
        )
    ]


def twins() -> dict[str, niw.Twin]:
    """Return Gaussian processes whose numbers the tasks share."""
    law, noise = InverseGamma(2.0, 20.0), 0.01
    return {
        "twin: ReLU, 2 layers": niw.Twin(wide_networks()[6], law, noise),
        "twin: erf, 2 layers": niw.Twin(wide_networks()[8], law, noise),
    }


def twin_prediction(process: ScaleMixture):
    """Return a function from a support set to the law at query points, noise included."""

    def predict(x, y, new):
        return process.condition(x, y).observation_marginals(new)

    return predict


def alone_prediction(x, y, new):
    """Predict one task by itself: the kernel and scale of the highest evidence of ten."""
    found = []
    for network in wide_networks():
        kernel = network.nngp(x)
        typical = jnp.mean(jnp.diagonal(kernel))
        for scale in 10.0 ** np.arange(-1, 2.5, 0.5):
            factor = scale / typical
            covariance = factor * kernel + NOISE**2 * jnp.eye(len(x))
            tril = jnp.linalg.cholesky(covariance)
            white = jax.scipy.linalg.solve_triangular(tril, y, lower=True)
            evidence = -jnp.sum(white**2) / 2 - jnp.sum(jnp.log(jnp.diagonal(tril)))
            cross = jax.scipy.linalg.solve_triangular(
                tril, factor * network.nngp(x, new), lower=True
            )
            variance = factor * network.diagonal(new).nngp - jnp.sum(cross**2, axis=0)
            found.append((evidence, cross.T @ white, jnp.maximum(variance, 0.0)))
    evidence, loc, variance = (jnp.stack(part) for part in zip(*found))
    best = jnp.argmax(evidence)
    one = jnp.zeros(1)
    return niw.Prediction(
        niw.Gaussian(NOISE), one, loc[best][None, :, None], variance[best][None, :, None]
    )
