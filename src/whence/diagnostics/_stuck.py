"""Checks for chains that do not move, or hardly."""

import numpy as np

from ._data import Draws
from ._names import listing, plural
from ._report import Finding

NARROW = 0.01  # a chain this much narrower than the others has not explored what they have
STICKY_RUN = 0.1  # longest stay at one point, as a fraction of the draws
STICKY_DRAWS = 20  # shorter stays are usual for a random walk accepting a quarter


def check_stuck(draws: Draws) -> tuple[list[Finding], np.ndarray]:
    """Find chains that stay at a point or are far narrower than the others.

    Returns:
        The findings, and which chains do not move or hardly, `(chain,)`.
    """
    positions = draws.positions
    if draws.num_draws < 2 or positions.shape[2] == 0:
        return [], np.zeros(draws.num_chains, bool)
    moves, frozen, stuck = _movement(positions)
    runs = np.array([_longest_stay(chain) for chain in moves])
    return _findings(draws, runs, frozen, stuck), stuck


def stuck_chains(positions: np.ndarray) -> np.ndarray:
    """Return which chains, of draws `(chain, draw, dim)`, do not move or hardly."""
    return _movement(positions)[2]


def _movement(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which steps move, `(chain, draw - 1)`, and which chains never do, or hardly."""
    moves = (positions[:, 1:] != positions[:, :-1]).any(axis=2)
    frozen = ~moves.any(axis=1)
    return moves, frozen, frozen | _narrow(positions)


def _findings(
    draws: Draws, runs: np.ndarray, frozen: np.ndarray, stuck: np.ndarray
) -> list[Finding]:
    limit = float(max(STICKY_DRAWS, STICKY_RUN * draws.num_draws))
    sticky = ~stuck & (runs > limit)
    if not (stuck | sticky).any():
        longest = plural(int(runs.max()), "draw")
        message = f"All chains move; the longest stay at one point is {longest}"
        return [Finding("stuck", "ok", message, float(runs.max()), limit, "rule of thumb")]
    findings = []
    if stuck.any():
        findings.append(_stuck(draws, frozen, stuck))
    if sticky.any():
        findings.append(_sticky(runs, sticky, limit))
    return findings


def _longest_stay(moved: np.ndarray) -> int:
    """Return the largest number of successive draws at one point."""
    edges = np.flatnonzero(np.concatenate([[True], moved, [True]]))
    return int(np.diff(edges).max())


def _narrow(positions: np.ndarray) -> np.ndarray:
    """Return the chains whose spread is tiny, for most coordinates, beside the widest.

    The widest chain is the yardstick, since any number of chains may be stuck: a stuck
    chain makes tiny steps about its start, a healthy one is of the posterior's width.
    """
    if len(positions) == 1:
        return np.zeros(1, bool)
    with np.errstate(invalid="ignore", over="ignore"):
        spread = np.std(positions.astype(np.float64), axis=1)
        widest = spread.max(axis=0)
        ratio = spread[:, widest > 0] / widest[widest > 0]
    if ratio.shape[1] == 0:
        return np.zeros(len(positions), bool)
    return np.median(ratio, axis=1) < NARROW


def _stuck(draws: Draws, frozen: np.ndarray, stuck: np.ndarray) -> Finding:
    where = tuple(f"chain {i}" for i in np.flatnonzero(stuck))
    how = "never moved" if frozen[stuck].all() else "hardly moved"
    message = f"{plural(len(where), 'chain')} of {draws.num_chains} {how}: {listing(where)}"
    remedy = (
        "Such a chain rejects every proposal or takes tiny steps: its step size was "
        "adapted wrongly, or it started where the density is not smooth. Run again with "
        "another key or more warmup, and check the target at that chain's values."
    )
    return Finding(
        "stuck", "error", message, float(len(where)), 0.0, remedy=remedy, where=where
    )


def _sticky(runs: np.ndarray, sticky: np.ndarray, limit: float) -> Finding:
    where = tuple(f"chain {i}" for i in np.flatnonzero(sticky))
    longest = int(runs[sticky].max())
    return Finding(
        "sticky",
        "warning",
        f"A chain stayed at one point for {longest} draws: {listing(where)}",
        value=float(longest),
        threshold=float(limit),
        source="rule of thumb",
        remedy="It is caught in a narrow region that its step size is too large for: use "
        "smaller steps (a higher target acceptance) or reparameterise.",
        where=where,
    )
