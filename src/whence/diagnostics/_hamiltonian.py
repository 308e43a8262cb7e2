"""Checks of Hamiltonian samplers: divergences, energy, tree depth, acceptance."""

from typing import Any

import numpy as np

from ._acceptance import check_acceptance
from ._convergence import bfmi
from ._data import Draws
from ._divergences import check_divergences
from ._names import listing, plural
from ._report import Finding

BFMI_LIMIT = 0.3
DEEP_RATE = 0.05
_BETANCOURT = "Betancourt 2016, arXiv:1604.00695"


def check_hamiltonian(
    draws: Draws, max_tree_depth: int | None, target_acceptance: Any
) -> tuple[list[Finding], dict[str, float]]:
    """Run those of the checks whose statistics were recorded."""
    findings, numbers = [], {}
    stats = draws.stats
    if "diverging" in stats:
        findings += check_divergences(draws)
        numbers["divergences"] = float(np.sum(stats["diverging"]))
    if "energy" in stats and stats["energy"].ndim == 2 and draws.num_draws > 1:
        values = bfmi(stats["energy"])
        findings.append(_bfmi(values))
        numbers["min_bfmi"] = float(values.min())
    reached = _reached(stats, max_tree_depth)
    if reached is not None:
        findings.append(_tree_depth(reached))
        numbers["max_tree_depth_rate"] = float(reached.mean())
    if "acceptance_rate" in stats:
        found, measured = check_acceptance(draws, target_acceptance, reached)
        findings += found
        numbers |= measured
    return findings, numbers


def _bfmi(values: np.ndarray) -> Finding:
    low = float(values.min())  # NaN if any is: a non-finite or constant energy is no pass
    if low >= BFMI_LIMIT:
        message = f"E-BFMI is at least {low:.2f}"
        return Finding("bfmi", "ok", message, low, BFMI_LIMIT, _BETANCOURT)
    where = tuple(f"chain {i}" for i in np.flatnonzero(~(values >= BFMI_LIMIT)))
    message = (
        f"E-BFMI is not available: the energy is constant or not finite ({listing(where)})"
        if np.isnan(low)
        else f"E-BFMI is as low as {low:.2f} ({listing(where)}): the chains move slowly "
        "between energy levels and may miss the tails"
    )
    remedy = (
        "Reparameterise (noncentered=True), or give heavy-tailed scales tighter "
        "priors; more draws help little."
    )
    return Finding("bfmi", "warning", message, low, BFMI_LIMIT, _BETANCOURT, remedy, where)


def _reached(stats, max_tree_depth: int | None) -> np.ndarray | None:
    if "reached_max_treedepth" in stats:
        return stats["reached_max_treedepth"].astype(bool)
    if "tree_depth" in stats and max_tree_depth is not None:
        return stats["tree_depth"] >= max_tree_depth
    return None


def _tree_depth(reached: np.ndarray) -> Finding:
    count, rate = int(reached.sum()), float(reached.mean())
    source = "Hoffman and Gelman 2014, JMLR 15; the rate is a rule of thumb"
    if not count:
        message = "No trajectory reached the largest tree depth"
        return Finding("tree_depth", "ok", message, 0.0, DEEP_RATE, source)
    return Finding(
        "tree_depth",
        "warning" if rate > DEEP_RATE else "note",
        f"{plural(count, 'trajectory', 'trajectories')} ({rate:.1%}) "
        "reached the largest tree depth and stopped before a U-turn",
        value=rate,
        threshold=DEEP_RATE,
        source=source,
        remedy="The draws are valid but costly: scales differ much between directions. Use a "
        "dense metric or more warmup, rescale or reparameterise; else raise max_tree_depth.",
        where=tuple(f"chain {i}" for i in np.flatnonzero(reached.any(axis=1))),
    )
