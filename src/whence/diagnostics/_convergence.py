"""R-hat and effective sample sizes of many variables at once, in NumPy.

The definitions are those of Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021),
doi:10.1214/20-BA1221: split chains, rank normalisation, folding about the median, Geyer's
initial monotone sequence. Variables are a batch axis throughout, so thousands of them cost
a few sorts and Fourier transforms rather than a Python loop each.

A variable with a non-finite draw has NaN for every statistic, and so has one that is
constant: there is nothing to estimate, and a large number would reassure wrongly.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ._require import draws_of

_BLOCK = 4_000_000  # draws worked on at a time: bounds the memory of sorts and transforms
_TAILS = (0.05, 0.95)  # quantiles of the tail ESS, Vehtari et al. (2021), section 4.3


class Convergence(NamedTuple):
    """R-hat and effective sample sizes, each of the shape of one draw.

    Attributes:
        rhat: Rank-normalised split R-hat, the larger of the bulk and the folded one.
        ess_bulk: Effective sample size of the rank-normalised draws.
        ess_tail: The smaller effective sample size of the 5% and 95% quantiles.
    """

    rhat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray


def convergence(draws: np.ndarray, tails: tuple[float, float] = _TAILS) -> Convergence:
    """Compute R-hat, bulk and tail ESS of every element of a variable.

    Args:
        draws: Shape `(chain, draw, ...)`. A single chain is compared with itself: its
            two halves stand for two chains.
        tails: Probabilities of the two quantiles of the tail ESS.

    Returns:
        NaN where fewer than 4 draws, a non-finite or only one value was given.

    References:
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), doi:10.1214/20-BA1221.
    """

    def statistics(values):
        split = split_chains(values)
        z = _z_scale(split)
        folded = np.abs(split - np.median(split, axis=(1, 2), keepdims=True))
        # `fmax`: the folded draws of a two-valued variable can be constant, hence NaN.
        rhat = np.fmax(_rhat(z), _rhat(_z_scale(folded)))
        return rhat, ess_of(z), _ess_tail(values, tails)

    return Convergence(*by_element(draws, statistics, 3))


def by_element(
    draws: np.ndarray, statistics: Callable[[np.ndarray], Sequence[np.ndarray]], number: int
) -> list[np.ndarray]:
    """Return statistics of every element of a variable, each of the shape of one draw.

    Returns:
        NaN where fewer than 4 draws, a non-finite or only one value was given.
    """
    draws = draws_of("draws", draws)
    rows, shape = _rows(draws)
    out = np.full((number, len(rows)), np.nan)
    usable = varies(draws).ravel() & (draws.shape[1] >= 4)
    for block in _blocks(rows, usable):
        out[:, block] = statistics(rows[block].astype(np.float64))
    return [row.reshape(shape) for row in out]


def rhat(draws: np.ndarray) -> np.ndarray:
    """Return the rank-normalised split R-hat of every element; see `convergence`."""
    return convergence(draws).rhat


def ess_bulk(draws: np.ndarray) -> np.ndarray:
    """Return the bulk effective sample size of every element; see `convergence`."""
    return convergence(draws).ess_bulk


def ess_tail(draws: np.ndarray) -> np.ndarray:
    """Return the tail effective sample size of every element; see `convergence`."""
    return convergence(draws).ess_tail


def bfmi(energy: np.ndarray) -> np.ndarray:
    """Return the estimated Bayesian fraction of missing information of every chain.

    Args:
        energy: Hamiltonian of every draw in nats, shape `(chain, draw)`.

    References:
        Betancourt (2016), arXiv:1604.00695.
    """
    energy = draws_of("energy", energy, "(chain, draw)").astype(np.float64)
    if energy.shape[1] < 2:
        raise ValueError(f"`energy` must have at least 2 draws; got {energy.shape[1]}.")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.mean(np.diff(energy, axis=1) ** 2, axis=1) / np.var(energy, axis=1, ddof=1)


def varies(draws: np.ndarray) -> np.ndarray:
    """Return, by element, whether all draws are finite and not all equal to rounding."""
    draws = np.asarray(draws)
    low, high = draws.min(axis=(0, 1)), draws.max(axis=(0, 1))
    if not np.issubdtype(draws.dtype, np.floating):
        return np.asarray(low != high)
    # A value that is constant but for rounding (the sum of a simplex, say) is constant.
    with np.errstate(invalid="ignore", over="ignore"):
        spread = high - low
        rounding = 8 * np.finfo(draws.dtype).eps * np.maximum(np.abs(low), np.abs(high))
        return np.asarray(np.isfinite(low) & np.isfinite(high) & (spread > rounding))


def _rows(draws: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """View `(chain, draw, ...)` as `(element, chain, draw)`."""
    draws = np.asarray(draws)
    flat = draws.reshape(*draws.shape[:2], math.prod(draws.shape[2:]))
    return np.moveaxis(flat, -1, 0), draws.shape[2:]


def _blocks(rows: np.ndarray, usable: np.ndarray) -> list[np.ndarray]:
    indices = np.flatnonzero(usable)
    per_block = max(1, _BLOCK // max(1, math.prod(rows.shape[1:])))
    return [indices[i : i + per_block] for i in range(0, len(indices), per_block)]


def split_chains(values: np.ndarray) -> np.ndarray:
    """Make two chains of every chain; a middle draw is left out."""
    half = values.shape[2] // 2
    return np.concatenate([values[:, :, :half], values[:, :, -half:]], axis=1)


def _z_scale(values: np.ndarray) -> np.ndarray:
    """Replace draws by normal scores of their ranks, ties sharing their mean rank."""
    from scipy.special import ndtri

    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    size = flat.shape[1]
    order = np.argsort(flat, axis=1)
    ordered = np.take_along_axis(flat, order, axis=1)
    is_new = np.ones(flat.shape, bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = last = np.broadcast_to(np.arange(size), flat.shape)
    if not is_new.all():
        first = np.maximum.accumulate(np.where(is_new, first, 0), axis=1)
        is_last = np.concatenate([is_new[:, 1:], np.ones((len(flat), 1), bool)], axis=1)
        reverse = np.where(is_last, last, size - 1)[:, ::-1]
        last = np.minimum.accumulate(reverse, axis=1)[:, ::-1]
    # Ranks are multiples of 1/2, so all scores there can be stand in one table.
    # Blom's offset 3/8: Vehtari et al. (2021), equation 14.
    table = ndtri((np.arange(2 * size - 1) / 2 + 1 - 3 / 8) / (size + 1 / 4))
    scores = np.empty_like(flat)
    np.put_along_axis(scores, order, table[first + last], axis=1)
    return scores.reshape(values.shape)


def _rhat(values: np.ndarray) -> np.ndarray:
    """Return R-hat of `(element, chain, draw)`, Vehtari et al. (2021), equations 1 to 4."""
    draws = values.shape[2]
    between = draws * np.var(values.mean(axis=2), axis=1, ddof=1)
    within = np.mean(np.var(values, axis=2, ddof=1), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((between / within + draws - 1) / draws)


def _ess_tail(values: np.ndarray, tails: tuple[float, float]) -> np.ndarray:
    quantiles = np.quantile(values, tails, axis=(1, 2))
    below = [values <= quantile[:, None, None] for quantile in quantiles]
    return np.minimum(
        *(ess_of(split_chains(indicator.astype(np.float64))) for indicator in below)
    )


def ess_of(values: np.ndarray) -> np.ndarray:
    """Return the effective sample size of `(element, chain, draw)`.

    Vehtari et al. (2021), equations 10 to 13, with Geyer's (1992) initial monotone
    sequence. A constant indicator counts as independent draws, as in ArviZ: it limits
    nothing, and the quantity it stands for is known.
    """
    _, chains, draws = values.shape
    size = chains * draws
    autocovariance = _mean_autocovariance(values)
    within = autocovariance[:, 0] * draws / (draws - 1)
    total = within * (draws - 1) / draws
    if chains > 1:
        total = total + np.var(values.mean(axis=2), axis=1, ddof=1)
    constant = total <= np.finfo(np.float64).tiny
    scale = np.where(constant, 1.0, total)
    rho = 1 - (within[:, None] - autocovariance) / scale[:, None]
    rho[:, 0] = 1.0

    # Sums of pairs (rho[2k], rho[2k+1]) of a reversible chain are positive and decrease.
    num_pairs = max(1, (draws - 4 + 1) // 2 + 1)
    even, odd = rho[:, 0 : 2 * num_pairs : 2], rho[:, 1 : 2 * num_pairs : 2]
    pairs = even + odd
    ends = pairs <= 0
    last = np.where(ends.any(axis=1), ends.argmax(axis=1), num_pairs - 1)
    kept = np.arange(num_pairs) < last[:, None]
    monotone = np.minimum.accumulate(pairs, axis=1)
    last_even = np.take_along_axis(even, last[:, None], axis=1)[:, 0]
    last_pair = np.take_along_axis(pairs, last[:, None], axis=1)[:, 0]
    last_even = np.where((last_even > 0) | (last_pair >= 0), last_even, 0.0)
    tau = -1 + 2 * np.sum(np.where(kept, monotone, 0.0), axis=1) + last_even
    # Antithetic chains may beat independent draws, but not without bound:
    # Vehtari et al. (2021), section 3.2.
    tau = np.maximum(tau, 1 / np.log10(size))
    return np.where(constant, float(size), size / tau)


def _mean_autocovariance(values: np.ndarray) -> np.ndarray:
    """Return the autocovariance (divisor `draw`) averaged over chains, `(element, lag)`."""
    from scipy.fft import irfft, next_fast_len, rfft

    draws = values.shape[2]
    length = next_fast_len(2 * draws, real=True)
    centred = values - values.mean(axis=2, keepdims=True)
    spectrum = np.asarray(rfft(centred, n=length, axis=2))
    power = np.mean(np.real(spectrum) ** 2 + np.imag(spectrum) ** 2, axis=1)
    return np.asarray(irfft(power, n=length, axis=1))[:, :draws] / draws
