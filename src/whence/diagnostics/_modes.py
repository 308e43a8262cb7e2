"""Chains that sit in different places: several modes, or chains too slow to tell.

Two groups of chains are apart when their central 90% ranges of some element do not
overlap. Modes of their own do that, and so do chains that move slowly in one mode, or are
still on their way to it. What separates them is how a chain moves within itself: chains in
two modes each mix where they are, so the draws of one chain are worth many independent
ones, while a chain too slow to cross the posterior is worth a handful. So only chains that
are worth `OWN_ESS` draws by themselves bear witness to modes.

Measured false alarms, in 400 runs each of four AR(1) chains in one normal, with an
autocorrelation time from a tenth of the chain's length to 40 times it, and lengths of 300
to 4000 draws: none in 7,200 runs (a limit of 15 would have 0.1%, of 5 up to 4%; without one
it is up to 96%). White noise laid over chains that need 4 times their length hides that
they hardly move: 1 of 600 at noise of 0.3 of the scale (1.5% with a limit of 30), 1% at
noise as wide as the posterior, whatever the limit. Two modes 8 scales apart were found in
all of 400 runs at coefficients of 0 and 0.5 within the modes, in 99.8% at 0.8, in 78% at
0.9; in the others, and for slower chains in modes, the finding is `apart`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ._convergence import ess_bulk
from ._data import Draws
from ._names import listing
from ._report import Finding

OWN_ESS = 50  # half of what a chain should have; a rule of thumb, by the rates above
_RANGE = (0.05, 0.95)
_SOURCE = "central 90% ranges that do not overlap, in units of their width"


class Gap(NamedTuple):
    """Two groups of chains, and the element on which they are most clearly apart."""

    name: str  # the element
    values: np.ndarray  # its draws, `(chain, draw)`
    low: np.ndarray  # numbers of the chains below the gap
    high: np.ndarray  # of those above it
    width: float  # of the gap, in units of the chains' mean 90% range


def check_modes(draws: Draws, stuck: np.ndarray) -> list[Finding]:
    """Find groups of chains that are apart, and say whether they are modes."""
    moving = np.flatnonzero(~stuck)
    own_ess = _own_ess(draws, moving)
    certain = _widest(draws, moving[own_ess >= OWN_ESS])
    if certain is not None:
        return [_modes(draws, certain)]
    gap = _widest(draws, moving)
    return [] if gap is None else [_apart(draws, gap, moving, own_ess)]


def _elements(draws: Draws, chains: np.ndarray) -> Iterator[tuple[str, tuple, np.ndarray]]:
    for name, shape, values in draws.elements():
        if values.dtype.kind in "fiub" and values.shape[2]:
            yield name, shape, values[chains].astype(np.float64)


def _own_ess(draws: Draws, chains: np.ndarray) -> np.ndarray:
    """Return what the draws of each chain are worth by themselves, `(chain,)`.

    Counted is the element it moves most slowly in, of those where any two chains are
    apart. NaN of a chain that moves in none of them, and of all if there are none.
    """
    least = np.full(len(chains), np.nan)
    if len(chains) < 2:
        return least
    for _, _, values in _elements(draws, chains):
        low, high = np.quantile(values, _RANGE, axis=1)
        apart = low.max(axis=0) > high.min(axis=0)
        if apart.any():
            ess = np.stack([ess_bulk(chain[None][..., apart]) for chain in values])
            least = np.fmin(least, np.fmin.reduce(ess, axis=1))
    return least


def _widest(draws: Draws, chains: np.ndarray) -> Gap | None:
    """Return the widest gap between these chains; None if there is none."""
    if len(chains) < 2:
        return None
    best = None
    for name, shape, values in _elements(draws, chains):
        width, order, size = _gaps(values)
        i = int(np.argmax(width))
        if width[i] > (0.0 if best is None else best.width):
            low, high = chains[order[: size[i], i]], chains[order[size[i] :, i]]
            element = draws.variables[name].reshape(*draws.leading, -1)[..., i]
            groups = np.sort(low), np.sort(high)
            best = Gap(draws.name(name, shape, i), element, *groups, float(width[i]))
    return best


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


def _places(draws: Draws, gap: Gap) -> str:
    groups = gap.low, gap.high
    places = (
        f"around {gap.values[group].mean():.4g} in chain {listing(map(str, group))}"
        for group in groups
    )
    text = f"{gap.name} is {' and '.join(places)}"
    if "lp" in draws.stats:
        levels = [float(draws.stats["lp"][group].mean()) for group in groups]
        text += f"; the mean log density there is {levels[0]:.4g} and {levels[1]:.4g} nats"
    return text


def _modes(draws: Draws, gap: Gap) -> Finding:
    message = (
        f"Chains sit in different places, and each mixes where it is: {_places(draws, gap)}"
    )
    remedy = (
        "The posterior has several modes, or solutions that differ by relabelling. "
        "The draws do not tell how much mass each has. Break the symmetry (order the "
        "components), use better starts, or an engine that moves between modes "
        "(tempering, SMC)."
    )
    return Finding("modes", "error", message, gap.width, 0.0, _SOURCE, remedy, (gap.name,))


def _apart(draws: Draws, gap: Gap, chains: np.ndarray, own_ess: np.ndarray) -> Finding:
    slow = [str(c) for c, ess in zip(chains, own_ess) if not ess >= OWN_ESS]
    least = np.fmin.reduce(own_ess)
    worth = "none" if np.isnan(least) else f"as few as {least:.0f}"
    message = (
        f"Chains are in different places: {_places(draws, gap)}. That may be several modes, "
        f"or one that they cross too slowly; the draws cannot tell, because {worth} of the "
        f"{draws.num_draws} draws of a chain are effective within it (chain {listing(slow)}; "
        f"{OWN_ESS} would be needed)"
    )
    remedy = (
        "Run longer, with more warmup, from dispersed starts, or reparameterise. "
        "Chains that then mix, each in a place of its own, are in modes; chains that meet "
        "were slow."
    )
    return Finding("apart", "error", message, gap.width, 0.0, _SOURCE, remedy, (gap.name,))
