"""Scores of predictions of real numbers: distance, width and coverage."""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from scipy import special

from ._require import numbers, predicted, require, require_probability


class Coverage(NamedTuple):
    """How often intervals held what they should.

    Attributes:
        fraction: Of observations inside.
        standard_error: Of that fraction, if the intervals held `level` of independent ones.
        level: What was promised.
    """

    fraction: float
    standard_error: float
    level: float


def crps_normal(y: ArrayLike, loc: ArrayLike, scale: ArrayLike) -> np.ndarray | np.floating:
    """Return the continuous ranked probability score of normal predictions.

    Lower is better; in the units of `y`, and of a point it is the absolute error.

    Args:
        y: Observations, any shape.
        loc: Predicted means, broadcast against `y`.
        scale: Predicted standard deviations, positive.

    Raises:
        ValueError: If a scale is not positive.

    References:
        Gneiting and Raftery (2007), Strictly proper scoring rules, prediction, and
        estimation, doi:10.1198/016214506000001437.
    """
    y, loc, scale = predicted(y, loc=loc, scale=scale)
    require("scale", scale, scale > 0, "positive")
    z = (y - loc) / scale
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return scale * (z * (2 * special.ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))


def crps_student_t(
    y: ArrayLike, df: ArrayLike, loc: ArrayLike, scale: ArrayLike
) -> np.ndarray | np.floating:
    """Return the continuous ranked probability score of Student-t predictions.

    Args:
        y: Observations, any shape.
        df: Degrees of freedom; at 1 or below there is no mean, and the score is infinite.
        loc: Locations, broadcast against `y`.
        scale: Scales (not standard deviations), positive.

    Raises:
        ValueError: If a scale or the degrees of freedom are not positive.

    References:
        Jordan, Krüger, Lerch (2019), Evaluating probabilistic forecasts with scoringRules,
        doi:10.18637/jss.v090.i12.
    """
    y, nu, loc, scale = predicted(y, df=df, loc=loc, scale=scale)
    require("scale", scale, scale > 0, "positive")
    require("df", nu, nu > 0, "positive")
    nu = nu.astype(float)
    z = (y - loc) / scale
    half = special.beta(0.5, nu / 2)
    density = (1 + z**2 / nu) ** (-(nu + 1) / 2) / (np.sqrt(nu) * half)
    with np.errstate(all="ignore"):  # without a mean, nu up to 1, the score is infinite
        near = 2 * density * (nu + z**2) / (nu - 1)
        spread = 2 * np.sqrt(nu) / (nu - 1) * special.beta(0.5, nu - 0.5) / half**2
        score = scale * (z * (2 * special.stdtr(nu, z) - 1) + near - spread)
    return np.where(nu > 1, score, np.inf)


def crps_normal_mixture(
    y: ArrayLike, loc: ArrayLike, scale: ArrayLike, weights: ArrayLike
) -> np.ndarray | np.floating:
    """Return the continuous ranked probability score of mixtures of normals.

    Args:
        y: Observations, any shape.
        loc: Locations of the components, shape of `y` and an axis of components.
        scale: Standard deviations, of that shape.
        weights: Of the components, broadcast against `loc`; they sum to 1.

    Raises:
        ValueError: If a scale is negative, or weights do not sum to 1.

    References:
        Grimit, Gneiting, Berrocal, Johnson (2006), The continuous ranked probability score
        for circular variables and its application to mesoscale forecast ensemble
        verification, doi:10.1256/qj.05.235.
    """
    loc, scale = np.broadcast_arrays(numbers("loc", loc), numbers("scale", scale))
    if not loc.ndim:
        raise ValueError("`loc` must have an axis of components; got a number.")
    weights = np.broadcast_to(weights, loc.shape)
    y, _ = predicted(y, loc=loc[..., 0])
    require("scale", scale, scale >= 0, "at least 0")
    total = weights.sum(-1)
    require("weights", total, np.abs(total - 1) < 1e-6, "summing to 1")

    def absolute(mean, deviation):
        """Mean of the absolute value of a normal variable."""
        safe = np.where(deviation > 0, deviation, 1.0)
        z = mean / safe
        smooth = safe * (2 * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))
        return np.where(deviation > 0, mean * (2 * special.ndtr(z) - 1) + smooth, np.abs(mean))

    error = np.sum(weights * absolute(y[..., None] - loc, scale), -1)
    between = absolute(
        loc[..., :, None] - loc[..., None, :],
        np.hypot(scale[..., :, None], scale[..., None, :]),
    )
    pairs = weights[..., :, None] * weights[..., None, :]
    return error - np.sum(pairs * between, (-1, -2)) / 2


def crps_draws(y: ArrayLike, draws: ArrayLike) -> np.ndarray | np.floating:
    """Return the continuous ranked probability score of predictions known by draws.

    Unbiased for the law that the draws are from, so it can be negative by chance.

    Args:
        y: Observations, any shape.
        draws: Independent predictions, an axis of draws and then the shape of `y`.

    Raises:
        ValueError: If there are fewer than 2 draws.
    """
    y, draws = numbers("y", y), numbers("draws", draws)
    if draws.shape[1:] != y.shape or not draws.ndim:
        raise ValueError(
            f"`draws` must have an axis of draws and then the shape of `y`, {y.shape}; got "
            f"{draws.shape}."
        )
    num = len(draws)
    if num < 2:
        raise ValueError(f"`draws` must have at least 2 draws; got {num}.")
    ordered = np.sort(draws, axis=0)
    rank = np.arange(1, num + 1).reshape(-1, *[1] * np.ndim(y))
    spread = np.sum((2 * rank - num - 1) * ordered, 0) / (num * (num - 1))
    return np.mean(np.abs(draws - y), 0) - spread


def interval_score(
    y: ArrayLike, low: ArrayLike, high: ArrayLike, *, level: float = 0.95
) -> np.ndarray | np.floating:
    """Return the width of intervals plus a penalty for what they miss; lower is better.

    Args:
        y: Observations, any shape.
        low: Lower ends, broadcast against `y`.
        high: Upper ends.
        level: Probability that the intervals promise to hold.

    Raises:
        ValueError: If the level is not between 0 and 1, or a lower end above the upper one.

    References:
        Gneiting and Raftery (2007), doi:10.1198/016214506000001437, equation 43.
    """
    require_probability("level", level)
    y, low, high = predicted(y, low=low, high=high)
    require("low", low, low <= high, "at most `high`")
    missed = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    return high - low + 2 / (1 - level) * missed


def coverage(y: ArrayLike, low: ArrayLike, high: ArrayLike, *, level: float = 0.95) -> Coverage:
    """Return how often intervals held the observations.

    Args:
        y: Observations, any shape.
        low: Lower ends, broadcast against `y`.
        high: Upper ends.
        level: Probability that the intervals promise to hold.

    Raises:
        ValueError: If the level is not between 0 and 1, or there are no observations.
    """
    require_probability("level", level)
    y, low, high = predicted(y, low=low, high=high)
    inside = (y >= low) & (y <= high)
    if not inside.size:
        raise ValueError("`y` must hold observations; it is empty.")
    error = np.sqrt(level * (1 - level) / inside.size)
    return Coverage(float(inside.mean()), float(error), level)
