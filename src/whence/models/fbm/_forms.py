"""Closed forms of the Markov approximation, in float64; times in units of the horizon.

Fractional Brownian motion is approximated by `sum_k w_k (Y_k(t) - Y_k(0))`, where all
Ornstein-Uhlenbeck processes `dY_k = -x_k Y_k dt + dW` share one Brownian motion W. A node
`x = 0` is W itself. All forms hold with it in place, by continuity, and none loses digits as
`x -> 0` or overflows as `x` grows.

References:
    Daems, Opper, Crevecoeur and Birdal (2024), Variational inference for SDEs driven by
    fractional noise, arXiv:2310.12975: `a_matrix`, `b_vector`.
    Mandelbrot and Van Ness (1968), doi:10.1137/1010093: both kinds of the process.
"""

import numpy as np
from scipy import special

Vector = np.ndarray


def own_variance(kind: str, hurst: float) -> float:
    """Return `Var B(1)` of a kind as its integral defines it."""
    if kind == "I":
        return float(1 / (special.gamma(2 * hurst + 1) * np.sin(np.pi * hurst)))
    return float(1 / (2 * hurst * special.gamma(hurst + 0.5) ** 2))


def _rest(x: Vector) -> Vector:
    """Return `1 - (1 - exp(-x)) / x`."""
    x = np.asarray(x, float)
    series = sum((-1) ** (n + 1) * x**n / special.factorial(n + 1) for n in range(1, 14))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(x < 0.3, series, 1 + np.expm1(-x) / x)


def _over(numerator: Vector, x: Vector, limit: Vector | float) -> Vector:
    """Return `numerator / x`, and `limit` where x is 0."""
    return np.where(x == 0, limit, numerator / np.where(x == 0, 1.0, x))


def a_matrix(kind: str, x: Vector) -> Vector:
    """Return `A`, the time average over (0, 1) of the covariance of `Y(t) - Y(0)`."""
    y = x[:, None] + x[None, :]
    if kind == "I":
        return _over(_rest(x)[:, None] + _rest(x)[None, :], y, 0.5)
    return _over(_rest(y), y, 0.5)


def scaled_upper_gamma(a: float, x: Vector) -> Vector:
    """Return `exp(x) Q(a, x)`, by Legendre's continued fraction where x is large."""
    x = np.asarray(x, float)
    large = np.where(x < 20, 20.0, x)
    tail = large + 81 - a
    for n in range(40, 0, -1):
        tail = large + 2 * n - 1 - a - n * (n - a) / tail
    # The same loop ends at x + 1 - a - 1 (1 - a) / (...), the first denominator.
    direct = np.exp(np.minimum(x, 20.0)) * special.gammaincc(a, np.minimum(x, 20.0))
    return np.where(x < 20, direct, large**a / tail / special.gamma(a))


def b_vector(kind: str, x: Vector, hurst: float) -> Vector:
    """Return `b`, the time average of the covariance of `Y(t) - Y(0)` with the process."""
    a = hurst + 0.5
    safe = np.where(x == 0, 1.0, x)
    if kind == "II":
        direct = safe * special.gammainc(a, safe) - a * special.gammainc(a + 1, safe)
        return np.where(x == 0, 1 / special.gamma(a + 2), safe ** (-a - 1) * direct)
    small = np.where(x < 2, x, 1.0)
    series = sum(small ** (n - 1) / special.gamma(a + 1 + n) for n in range(1, 41))
    series -= 2 * sum(small ** (2 * m - a) / special.factorial(2 * m + 1) for m in range(1, 16))
    large = np.where(x < 2, 2.0, x)
    direct = 2 * large**-a - 1 / (large * special.gamma(a + 1))
    direct += large ** (-a - 1) * (np.exp(-large) - scaled_upper_gamma(a, large))
    return np.where(x < 2, series, direct)


def c_number(kind: str, hurst: float) -> float:
    """Return `c`, the time average of the variance of the process over (0, 1)."""
    return own_variance(kind, hurst) / (2 * hurst + 1)


def l2_weights(kind: str, x: Vector, hurst: float) -> Vector:
    """Return the weights with the least mean squared error of the path, `A w = b`.

    Those of the process with its own variance, not of the one with unit variance. A is
    scaled to a unit diagonal, and directions that float64 cannot tell from 0 are left out.
    """
    matrix = a_matrix(kind, x)
    scale = 1 / np.sqrt(np.diag(matrix))
    scaled = matrix * np.outer(scale, scale)
    return scale * np.linalg.lstsq(scaled, scale * b_vector(kind, x, hurst), rcond=1e-13)[0]


def path_error(kind: str, x: Vector, weights: Vector, hurst: float) -> float:
    """Return the root of the mean squared error of the path, relative to the process."""
    own = weights * np.sqrt(own_variance(kind, hurst))
    error = own @ a_matrix(kind, x) @ own - 2 * b_vector(kind, x, hurst) @ own
    c = c_number(kind, hurst)
    return float(np.sqrt(max(error + c, 0.0) / c))


def rl_covariance(s: Vector, t: Vector, hurst: float) -> Vector:
    """Return the covariance of kind II with unit variance at 1."""
    low, high = np.minimum(s, t), np.maximum(s, t)
    a = hurst + 0.5
    safe = np.where(high == 0, 1.0, high)
    ratio = special.hyp2f1(0.5 - hurst, 1.0, a + 1, low / safe)
    own = low**a * safe ** (hurst - 0.5) / (a * special.gamma(a) ** 2) * ratio
    return np.asarray(own / own_variance("II", hurst))


def variogram_forms(x: Vector, lags: Vector) -> Vector:
    """Return matrices V with `w V(lag) w` the variance of an increment of kind I."""
    fall = -np.expm1(-x[None, :] * lags[:, None])
    y = x[:, None] + x[None, :]
    return _over(fall[:, :, None] + fall[:, None, :], y[None], lags[:, None, None])


def rl_forms(x: Vector, s: Vector, t: Vector) -> Vector:
    """Return matrices with `w M w` the variance of `B(t) - B(s)` of kind II, `s <= t`."""
    y = (x[:, None] + x[None, :])[None]

    def cross(s, t):
        s, t = s[:, None, None], t[:, None, None]
        return np.exp(-x[None, None, :] * (t - s)) * _over(-np.expm1(-y * s), y, s)

    mixed = cross(s, t)
    return cross(t, t) + cross(s, s) - mixed - np.swapaxes(mixed, 1, 2)
