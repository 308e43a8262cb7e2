"""Are ranks uniform? A test and a band for the whole ECDF at once, both exact.

Of `n` ranks, each uniform on `0..L`, the number below `i` is binomial with probability
`i / (L + 1)`. Säilynoja, Bürkner and Vehtari (2022) look at all `i` together: the
statistic is the smallest two-sided binomial tail over `i`, and its distribution follows
from the counts being a Markov chain in `i` (their section 2.2): given that `a` ranks are
below `i`, the others are uniform on `i..L`, so the next count is `a` plus a binomial of the
`n - a` that are left.
"""

from functools import lru_cache

import numpy as np
from scipy.special import bdtr, bdtrc, gammaln

_LEAST = 1e-13  # probabilities below this are lost to rounding
_PRECISION = 1e-3  # of the pointwise level, relative


def counts_below(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """Count the ranks below each of `1, ..., num_draws`."""
    return np.cumsum(np.bincount(ranks, minlength=num_draws + 1))[:-1]


def p_value(ranks: np.ndarray, num_draws: int) -> float:
    """Test whether ranks are uniform on `0..num_draws`.

    Returns:
        The exact p-value; values below 1e-13 are rounded up to it.

    References:
        Säilynoja, Bürkner, Vehtari (2022), doi:10.1007/s11222-022-10090-6.
    """
    size = len(ranks)
    tails = _tails(size, num_draws)
    counts = counts_below(ranks, num_draws)
    smallest = tails[np.arange(num_draws), counts].min()
    return _p_of_level(size, num_draws, float(max(smallest, _LEAST)))


@lru_cache(maxsize=64)
def band(size: int, num_draws: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the band that the whole ECDF of uniform ranks leaves with probability `alpha`.

    Returns:
        The lowest and the highest counts of ranks below `1, ..., num_draws`.
    """
    low, high = np.log(_LEAST), np.log(max(alpha, 2 * _LEAST))
    # One point alone leaves at level `alpha`, all of them together more often.
    while high - low > _PRECISION:
        middle = (low + high) / 2
        is_wide = _p_of_level(size, num_draws, float(np.exp(middle))) <= alpha
        low, high = (middle, high) if is_wide else (low, middle)
    return _limits(size, num_draws, float(np.exp(low)))


@lru_cache(maxsize=64)
def _tails(size: int, num_draws: int) -> np.ndarray:
    """Return the two-sided tail of every count at every point, `(point, count)`."""
    chance = np.arange(1, num_draws + 1)[:, None] / (num_draws + 1)
    count = np.arange(size + 1)[None]
    at_most = bdtr(count, size, chance)
    at_least = np.where(count > 0, bdtrc(np.maximum(count - 1, 0), size, chance), 1.0)
    return np.minimum(1.0, 2 * np.minimum(at_most, at_least))


def _limits(size: int, num_draws: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest count with a tail above `level`, by point."""
    # Equal tails of mirrored counts differ by rounding; they belong together.
    inside = _tails(size, num_draws) > level * (1 + 1e-9)
    return inside.argmax(axis=1), size - inside[:, ::-1].argmax(axis=1)


@lru_cache(maxsize=4096)
def _p_of_level(size: int, num_draws: int, level: float) -> float:
    """Return the probability that uniform ranks have a tail of at most `level` somewhere."""
    if level * (1 + 1e-9) >= 1:
        return 1.0
    lowest, highest = _limits(size, num_draws, level)
    factorial = gammaln(np.arange(size + 1) + 1.0)
    before, weight = np.zeros(1, int), np.ones(1)
    for i in range(num_draws):
        now = np.arange(lowest[i], highest[i] + 1)
        # Of those not below `i`, spread over `L + 1 - i` values, these have the first one.
        chance = 1 / (num_draws + 1 - i)
        gain, left = now[None] - before[:, None], size - before[:, None]
        legal = (gain >= 0) & (gain <= left)
        gain = np.where(legal, gain, 0)
        log_choose = factorial[left] - factorial[gain] - factorial[left - gain]
        log_step = log_choose + gain * np.log(chance) + (left - gain) * np.log1p(-chance)
        before, weight = now, weight @ np.where(legal, np.exp(log_step), 0.0)
    return float(np.clip(1 - weight.sum(), _LEAST, 1.0))
