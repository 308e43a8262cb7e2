"""The numbers of a summary table: moments, an interval, ESS, R-hat and Monte Carlo errors."""

from collections.abc import Callable

import numpy as np

from ._convergence import convergence
from ._mcse import mcse, mcse_weighted
from ._weights import normalise

KINDS = ("all", "stats", "diagnostics")
INTERVALS = ("eti", "hdi")
Columns = dict[str, np.ndarray]


def summarise(
    values: np.ndarray,
    log_weights: np.ndarray | None,
    *,
    chains: bool,
    kind: str,
    prob: float,
    interval: str,
    tail: float,
    families: np.ndarray | None = None,
) -> Columns:
    """Return the columns of a summary of one variable, by ArviZ's names and in its order.

    Args:
        values: Shape `(chain, draw, element)`.
        log_weights: In nats, `(chain, draw)`; None if all draws count the same.
        chains: Whether draws that have weights are those of Markov chains.
        kind: `"stats"`, `"diagnostics"`, or `"all"`: both.
        prob: Probability inside the interval.
        interval: `"eti"` (equal tails) or `"hdi"` (the shortest).
        tail: Probability of the upper quantile of the tail ESS.
        families: Of weighted particles, as for `mcse_weighted`.

    Returns:
        Arrays `(element,)`.
    """
    if log_weights is None:
        stats, diagnostics = _stats, _diagnostics(tail)
    else:
        weights = normalise(log_weights)
        stats = _weighted_stats(weights)
        weights = weights.reshape(values.shape[:2])
        diagnostics = _weighted_diagnostics(weights, chains, families)
    out: Columns = {}
    if kind != "diagnostics":
        mean, sd, (low, high) = stats(values, prob, interval)
        percent = int(prob * 100)  # as ArviZ names it
        names = ("mean", "sd", f"{interval}{percent}_lb", f"{interval}{percent}_ub")
        out |= dict(zip(names, (mean, sd, low, high), strict=True))
    if kind != "stats":
        out |= diagnostics(values)
    return out


def _flat(values: np.ndarray) -> np.ndarray:
    """Return `(chain, draw, element)` as `(draw of any chain, element)`."""
    return np.concatenate(list(values)).astype(np.float64)


def _stats(values: np.ndarray, prob: float, interval: str):
    rows = _flat(values)
    mean = rows.mean(axis=0)
    with np.errstate(invalid="ignore"):
        sd = rows.std(axis=0, ddof=1) if len(rows) > 1 else np.full(rows.shape[1], np.nan)
        if interval == "hdi":
            return mean, sd, _shortest(np.sort(rows, axis=0), prob)
        edge = (1 - prob) / 2
        return mean, sd, np.quantile(rows, [edge, 1 - edge], axis=0)


def _shortest(ordered: np.ndarray, prob: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the shortest interval between draws, of `(draw, element)`."""
    steps = min(int(np.floor(prob * len(ordered))), len(ordered) - 1)
    start = np.argmin(ordered[steps:] - ordered[: len(ordered) - steps], axis=0)
    elements = np.arange(ordered.shape[1])
    return ordered[start, elements], ordered[start + steps, elements]


def _diagnostics(tail: float) -> Callable[[np.ndarray], Columns]:
    def columns(values: np.ndarray) -> Columns:
        found, error = convergence(values, (1 - tail, tail)), mcse(values)
        # R-hat of one chain compares its halves: `diagnose` does; a table cannot say so.
        rhat = found.rhat if len(values) > 1 else np.full_like(found.rhat, np.nan)
        return _named(found.ess_bulk, found.ess_tail, rhat, error.mean, error.sd)

    return columns


def _weighted_stats(weights: np.ndarray):
    def stats(values: np.ndarray, prob: float, interval: str):
        rows = _flat(values)
        mean = weights @ rows
        sd = np.sqrt(weights @ (rows - mean) ** 2)
        ends = _weighted_shortest if interval == "hdi" else _weighted_tails
        columns = [ends(column, weights, prob) for column in rows.T]
        return mean, sd, np.array(columns).reshape(-1, 2).T

    return stats


def _weighted_tails(values: np.ndarray, weights: np.ndarray, prob: float):
    order = np.argsort(values)
    # A draw stands at the middle of its own weight.
    middle = np.cumsum(weights[order]) - weights[order] / 2
    edge = (1 - prob) / 2
    return np.interp([edge, 1 - edge], middle, values[order])


def _weighted_shortest(values: np.ndarray, weights: np.ndarray, prob: float):
    order = np.argsort(values)
    ordered, above = values[order], np.cumsum(weights[order])
    below = above - weights[order]
    start = np.flatnonzero(below + prob <= above[-1] + 1e-12)
    end = np.minimum(np.searchsorted(above, below[start] + prob - 1e-12), len(values) - 1)
    best = np.argmin(ordered[end] - ordered[start])
    return ordered[start[best]], ordered[end[best]]


def _weighted_diagnostics(
    weights: np.ndarray, chains: bool, families: np.ndarray | None
) -> Callable[[np.ndarray], Columns]:
    def columns(values: np.ndarray) -> Columns:
        error = mcse_weighted(values, weights, chains=chains, families=families)
        ess, rhat = np.full(error.mean.shape, 1 / np.sum(weights**2)), np.nan * error.mean
        if chains:
            _, sd, _ = _weighted_stats(weights.ravel())(values, 0.5, "eti")
            ess, rhat = (sd / error.mean) ** 2, _diagnostics(0.95)(values)["r_hat"]
        return _named(ess, ess, rhat, error.mean, error.sd)

    return columns


def _named(*columns: np.ndarray) -> Columns:
    names = ("ess_bulk", "ess_tail", "r_hat", "mcse_mean", "mcse_sd")
    return dict(zip(names, columns, strict=True))
