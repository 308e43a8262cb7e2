"""Weights of the Markov approximation as smooth functions of H: made once, in float64."""

from __future__ import annotations

import functools

import numpy as np
from scipy.interpolate import CubicSpline

from . import _forms as forms

# Of H. Between knots a spline is exact to 3e-4 in variance; 4e-3 beyond 0.01 and 0.99.
LEAST, MOST, KNOTS = 0.002, 0.998, 167
REACH = 2.0  # horizons: the longest lag at which laws are matched
LAGS = 60  # logarithmically spaced lags at which laws are matched
PULL = 1e-5  # towards the weights of least path error, per lag


def targets(
    kind: str, x: np.ndarray, resolution: float
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return quadratic forms of variances that the law is judged by, and their two times.

    Of kind I these are increments from lag `resolution` to `REACH`; of kind II variances at
    these times and increments that end at 1 and at `REACH`.
    """
    lags = np.geomspace(resolution, REACH, LAGS)
    if kind == "I":
        return forms.variogram_forms(x, lags), (np.zeros(LAGS), lags)
    short = lags[lags < 0.5]
    s = np.concatenate([np.zeros(LAGS), 1 - short, REACH - short])
    t = np.concatenate([lags, np.ones_like(short), np.full_like(short, REACH)])
    return forms.rl_forms(x, s, t), (s, t)


def exact_variances(kind: str, hurst: float, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return `Var(B(t) - B(s))` of the process with unit variance at 1."""
    if kind == "I":
        return (t - s) ** (2 * hurst)
    mixed = forms.rl_covariance(s, t, hurst)
    return t ** (2 * hurst) + s ** (2 * hurst) - 2 * mixed


def misfit(kind: str, x: np.ndarray, weights: np.ndarray, hurst: float, resolution: float):
    """Return the log ratio of the approximation's variances to the exact ones, and the lags."""
    matrices, (s, t) = targets(kind, x, resolution)
    got = np.einsum("pij,i,j->p", matrices, weights, weights)
    return np.log(got / exact_variances(kind, hurst, s, t)), t - s


def _matched(
    matrices: np.ndarray, want: np.ndarray, start: np.ndarray, near: np.ndarray
) -> np.ndarray:
    """Return weights of least squared log ratio of variances, by Levenberg and Marquardt.

    The pull towards `start` makes the minimum unique where the lags do not, and it is looked
    for from `near`, that of a neighbouring H, so that it moves smoothly with H.
    """
    scale = 1 / np.sqrt(np.einsum("pii->i", matrices) / len(matrices))
    pull = np.sqrt(PULL * len(matrices)) * np.eye(len(start))

    def residuals(z):
        product = np.einsum("pij,j->pi", matrices, scale * z)
        variance = np.maximum(product @ (scale * z), 1e-300)
        jacobian = 2 * product * scale / variance[:, None]
        r = np.concatenate([np.log(variance / want), pull @ (z - start / scale)])
        return r, np.concatenate([jacobian, pull])

    z, damping = near / scale, 1e-3
    r, jacobian = residuals(z)
    for _ in range(200):
        hessian = jacobian.T @ jacobian
        gradient = jacobian.T @ r
        step = np.linalg.solve(hessian + damping * len(want) * np.eye(len(z)), gradient)
        r_new, jacobian_new = residuals(z - step)
        if r_new @ r_new <= r @ r:
            done = r @ r - r_new @ r_new < 1e-15 * (r @ r)
            z, r, jacobian, damping = z - step, r_new, jacobian_new, damping / 4
            if done:
                break
        else:
            damping *= 8
    return scale * z


def _rescaled(
    kind: str, x: np.ndarray, start: np.ndarray, hurst: float, lag: float
) -> np.ndarray:
    """Return `start` times the factor that makes the last increment of this lag exact."""
    s, t = np.array([1 - lag]), np.ones(1)
    both = forms.variogram_forms(x, t - s) if kind == "I" else forms.rl_forms(x, s, t)
    want = exact_variances(kind, hurst, s, t)[0]
    return start * np.sqrt(want / (start @ both[0] @ start))


def _values(kind: str, x: np.ndarray, mode: str, resolution: float, knots: np.ndarray):
    """Return the weights of the process with unit variance at every knot, `(knot, node)`."""
    best = np.stack(
        [
            forms.l2_weights(kind, x, hurst) / np.sqrt(forms.own_variance(kind, hurst))
            for hurst in knots
        ]
    )
    if mode == "l2":
        return best
    if mode == "delta":
        pairs = zip(best, knots)
        return np.stack([_rescaled(kind, x, w, hurst, resolution) for w, hurst in pairs])
    matrices, (s, t) = targets(kind, x, resolution)
    found = best.copy()
    middle = int(np.argmin(np.abs(knots - 0.5)))  # where the approximation is exact
    for way in (range(middle, len(knots)), range(middle - 1, -1, -1)):
        near = best[middle]
        for i in way:
            want = exact_variances(kind, knots[i], s, t)
            near = found[i] = _matched(matrices, want, best[i], near)
    return found


@functools.lru_cache(maxsize=64)
def table(kind: str, x: tuple[float, ...], mode: str, resolution: float) -> CubicSpline:
    """Return the weights `(node,)` of the process with unit variance at one horizon, by H."""
    knots = np.linspace(LEAST, MOST, KNOTS)
    return CubicSpline(knots, _values(kind, np.asarray(x), mode, resolution, knots))
