"""Regression with scale mixtures: kernels by evidence, laws of the scale side by side."""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import linalg

from ..diagnostics import coverage, crps_normal, crps_normal_mixture, crps_student_t
from ..models.nngp import (
    AbstractLaw,
    BurrXII,
    Dense,
    Erf,
    InverseGamma,
    Jeffreys,
    PointMass,
    ReLU,
    ScaleMixture,
    ScaleMixtureMarginals,
    Serial,
    StudentT,
)

EPS = 10 ** np.arange(-5, 1.5, 0.5)


class Split(NamedTuple):
    """Data divided and standardised by their training part."""

    x: np.ndarray  # training inputs, shape `(rows, features)`
    y: np.ndarray  # training outputs, of mean 0 and variance 1
    x_new: np.ndarray  # test inputs
    y_new: np.ndarray  # test outputs, on the scale of `y`
    unit: float  # standard deviation of the outputs, in their own unit


class Choice(NamedTuple):
    """A kernel and a noise, as the evidence chose them."""

    name: str  # in words
    network: Serial  # its kernel has mean 1 on the diagonal of the training inputs
    noise: float  # as a multiple of the scale


class Scores(NamedTuple):
    """Means over test rows, in the unit of the data."""

    nll: float  # negative log density of an observation, in nats
    rmse: float  # root mean squared error
    crps: float  # continuous ranked probability score
    covered: float  # share of observations inside central 95% intervals


def split(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> Split:
    """Divide data and standardise them by the training part."""
    mean, deviation = x[train].mean(0), x[train].std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)  # a constant column says nothing
    centre, unit = y[train].mean(), y[train].std()
    x, y = (x - mean) / deviation, (y - centre) / unit
    return Split(x[train], y[train], x[test], y[test], float(unit))


def networks(depths: tuple[int, ...]) -> Iterator[tuple[str, list]]:
    """Yield names and layers of the networks to choose among, without readout."""
    for depth in depths:
        for kind, activation, weight in (
            ("ReLU", ReLU(), 1.0),
            ("erf", Erf(), 1.0),
            ("erf", Erf(), 4.0),
        ):
            for bias in (0.0, 0.1, 1.0):
                name = f"{kind}, depth {depth}, weights {weight:g}, biases {bias:g}"
                yield name, [Dense(weight, bias), activation] * depth


def choose(data: Split, depths: tuple[int, ...]) -> Choice:
    """Return the kernel and noise of the highest evidence, the scale set to its best value.

    One eigendecomposition per kernel serves all values of the noise.
    """
    best, chosen = -np.inf, None
    n = len(data.y)
    for name, layers in networks(depths):
        unscaled = Serial(*layers, Dense())
        typical = float(np.mean(unscaled.diagonal(data.x).nngp))
        kernel = np.asarray(unscaled.nngp(data.x)) / typical
        values, vectors = linalg.eigh(kernel, check_finite=False, driver="evd")
        projected = (vectors.T @ data.y) ** 2
        spectrum = np.maximum(values, 0) + EPS[:, None]
        log_evidence = -n / 2 * np.log(np.sum(projected / spectrum, 1) / n)
        log_evidence -= np.sum(np.log(spectrum), 1) / 2
        if log_evidence.max() > best:
            best = log_evidence.max()
            noise = float(EPS[log_evidence.argmax()])
            chosen = Choice(name, Serial(*layers, Dense(1 / typical)), noise)
    if chosen is None:
        raise ValueError("`data` must give some kernel a finite evidence; none has one.")
    return chosen


def laws(data: Split, choice: Choice) -> dict[str, AbstractLaw]:
    """Return the laws of the scale to compare; the Gaussian's is the scale that fits best."""
    given = ScaleMixture(choice.network, Jeffreys(), choice.noise).condition(data.x, data.y)
    return {
        "Gaussian": PointMass(float(given.quadratic) / given.size),
        "IG(2, 1)": InverseGamma(2.0, 1.0),
        "Burr(2, 1)": BurrXII(2.0, 1.0),
        "Jeffreys": Jeffreys(),
    }


def score(data: Split, choice: Choice, law: AbstractLaw) -> Scores:
    """Return scores of the predictions of new observations."""
    given = ScaleMixture(choice.network, law, choice.noise).condition(data.x, data.y)
    predicted = given.observation_marginals(data.x_new)
    nll = -np.asarray(predicted.log_prob(jnp.asarray(data.y_new)))
    low, high = (np.asarray(predicted.icdf(jnp.asarray(p))) for p in (0.025, 0.975))
    error = data.y_new - np.asarray(given.moments(data.x_new)[0][:, 0])
    return Scores(
        float(nll.mean() + np.log(data.unit)),
        float(np.sqrt(np.mean(error**2)) * data.unit),
        float(np.mean(_crps(predicted, data.y_new)) * data.unit),
        coverage(data.y_new, low, high).fraction,
    )


def _crps(predicted, y: np.ndarray) -> np.ndarray:
    loc, scale = np.asarray(predicted.loc), np.asarray(predicted.scale)
    if isinstance(predicted, ScaleMixtureMarginals):
        deviations = scale[:, None] * np.exp(np.asarray(predicted.log_scales) / 2)
        weights = np.exp(np.asarray(predicted.log_weights))
        return np.asarray(crps_normal_mixture(y, loc[:, None], deviations, weights))
    if isinstance(predicted, StudentT):
        return np.asarray(crps_student_t(y, np.asarray(predicted.df), loc, scale))
    return np.asarray(crps_normal(y, loc, scale))
