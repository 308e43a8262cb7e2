"""Chains that sit in different places: several modes, or several solutions."""

import numpy as np

from ._data import Draws
from ._names import listing
from ._report import Finding

_RANGE = (0.05, 0.95)


def check_modes(draws: Draws) -> list[Finding]:
    """Find the coordinate on which two groups of chains are most clearly apart.

    Two groups are apart when their central 90% ranges do not overlap: chains that merely
    mix slowly have ranges that do.

    Args:
        draws: What to check.
    """
    if draws.num_chains < 2:
        return []
    best, best_gap = None, 0.0
    for name, shape, values in draws.elements():
        if values.dtype.kind not in "fiub" or values.shape[2] == 0:
            continue
        gap, order, size = _gaps(values.astype(np.float64))
        index = int(np.argmax(gap))
        if gap[index] > best_gap:
            best_gap = float(gap[index])
            best = (
                draws.name(name, shape, index),
                values[..., index],
                order[:, index],
                size[index],
            )
    if best is None:
        return []
    name, values, order, size = best
    groups = np.sort(order[:size]), np.sort(order[size:])
    return [_finding(draws, name, values, groups, best_gap)]


def _gaps(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the widest gap between chains per element, the chains' order, where it is.

    The gap is in units of the chains' mean 90% range; negative if all ranges overlap.
    """
    low, middle, high = np.quantile(values, (_RANGE[0], 0.5, _RANGE[1]), axis=1)
    order = np.argsort(middle, axis=0)
    low, high = (np.take_along_axis(x, order, axis=0) for x in (low, high))
    below = np.maximum.accumulate(high, axis=0)[:-1]
    above = np.minimum.accumulate(low[::-1], axis=0)[::-1][1:]
    width = np.mean(high - low, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = (above - below) / np.where(width > 0, width, np.nan)
    gap = np.where(np.isnan(gap), -np.inf, gap)
    size = np.argmax(gap, axis=0)
    return np.take_along_axis(gap, size[None], axis=0)[0], order, size + 1


def _finding(draws: Draws, name: str, values: np.ndarray, groups, gap: float) -> Finding:
    low, high = groups
    means = f"around {values[low].mean():.4g}", f"around {values[high].mean():.4g}"
    message = (
        f"Chains sit in different places: {name} is {means[0]} in chain "
        f"{listing(map(str, low))} and {means[1]} in chain {listing(map(str, high))}"
    )
    if "lp" in draws.stats:
        levels = [float(draws.stats["lp"][group].mean()) for group in groups]
        message += f"; the mean log density there is {levels[0]:.4g} and {levels[1]:.4g} nats"
    return Finding(
        "modes",
        "error",
        message,
        value=gap,
        threshold=0.0,
        source="central 90% ranges that do not overlap, in units of their width",
        remedy="The posterior has several modes, or solutions that differ by relabelling. "
        "The draws do not tell how much mass each has. Break the symmetry (order the "
        "components), use better starts, or an engine that moves between modes "
        "(tempering, SMC).",
        where=(name,),
    )
