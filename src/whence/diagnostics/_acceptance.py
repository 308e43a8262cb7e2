"""Does the step size that warm-up found fit where each chain is now?

Both ways: too large (proposals are rejected), or too small (hardly any is, and trajectories
end before they cross the posterior). A chain can also leave the place it was adapted to
after warm-up, so its halves are looked at too.

No alarm was raised in 160 runs of NUTS (4 chains of 500 draws, aims of 0.6, 0.8 and 0.95)
on normal, badly scaled, Student t(2) and hierarchical targets; half of 20 runs on a funnel
raised one, where a chain was in its neck and accepted as little as 0.28.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._data import Draws
from ._names import listing, plural
from ._report import Finding

LOW = 0.1  # with no aim known
SLACK = 0.15  # a rule of thumb: what dual averaging misses its aim by on curved posteriors
ENOUGH = 0.65  # optimal for long trajectories in high dimension: nobody needs more to mix
HIGH = 0.25  # rejections as a fraction of those aimed at, below which steps are small
SATURATED = 0.05  # share of trajectories cut off
COSTLY = 4.0  # leapfrog steps of a chain, in those of the middle one
_ENOUGH_SOURCE = "rule of thumb; 0.65: Beskos et al. 2013, doi:10.3150/12-BEJ414"
_ANEW = (
    "The step size was adapted to another place: a minor mode or a tail that the chain left "
    "after warmup, or a wider or narrower part of the posterior. Run again, from dispersed "
    "starts and with a longer warmup; if it comes back, reparameterise; "
)


def check_acceptance(
    draws: Draws, target: Any, reached: np.ndarray | None
) -> tuple[list[Finding], dict[str, float]]:
    """Find chains whose acceptance rate is far from `target`, a number or one of each chain."""
    rate = draws.stats["acceptance_rate"].astype(np.float64)
    if target is not None:
        target = np.asarray(target, np.float64)
        # Of a record that is not of these chains, the highest.
        target = np.broadcast_to(
            target if target.size == len(rate) else target.max(), len(rate)
        )
    findings = [_low(rate, draws.stats, target)]
    if target is not None:
        findings += _high(rate, draws.stats, target, reached)
    return findings, {"acceptance_rate": float(rate.mean())}


def _halves(values: np.ndarray) -> np.ndarray:
    """Return means of all, the first and the second half of the draws, `(3, chain)`."""
    half = values.shape[1] // 2
    parts = (values, values[:, :half] if half else values, values[:, half:])
    return np.stack([part.mean(axis=1) for part in parts])


def _aimed(target: np.ndarray) -> str:
    low, high = f"{target.min():.2f}", f"{target.max():.2f}"
    return f"{low if low == high else f'{low} to {high}'} was aimed at"


def _low(
    rate: np.ndarray, stats: Mapping[str, np.ndarray], target: np.ndarray | None
) -> Finding:
    aim = np.zeros(len(rate)) if target is None else target
    limit = np.clip(aim - SLACK, LOW, ENOUGH)
    means = _halves(rate)
    # The mean of few draws is noise; a mean of none is not: NaN is no pass.
    error = rate.std(axis=1) / np.sqrt(max(1, rate.shape[1] // 2))
    bad = ~(means + 2 * error >= limit)
    chains = np.flatnonzero(bad.any(axis=0))
    nearest = int(np.argmin((means - limit).min(axis=0)))
    worst, threshold = float(means[:, nearest].min()), float(limit[nearest])
    if not len(chains):
        message = f"The mean acceptance rate is {rate.mean():.2f}"
        if target is not None:
            message += f", {_aimed(target)}"
        return Finding("acceptance", "ok", message, worst, threshold, _ENOUGH_SOURCE)
    aimed = "" if target is None else f"; {_aimed(target)}"
    return Finding(
        "acceptance",
        "warning",
        f"The step size is too large for where {plural(len(chains), 'chain')} of {len(rate)} "
        f"{'is' if len(chains) == 1 else 'are'} now, by the acceptance rate: "
        f"{_listed(chains, means, bad, stats)}{aimed}",
        value=worst,
        threshold=threshold,
        source=_ENOUGH_SOURCE,
        remedy=_ANEW + "if all chains are like this, use smaller steps (a higher target "
        "acceptance).",
        where=tuple(f"chain {i}" for i in chains),
    )


def _high(
    rate: np.ndarray,
    stats: Mapping[str, np.ndarray],
    target: np.ndarray,
    reached: np.ndarray | None,
) -> list[Finding]:
    means, limit = _halves(rate), 1 - HIGH * (1 - target)
    length, longest, words = _lengths(stats, reached, means.shape)
    bad = (means > limit) & (length > longest)
    chains = np.flatnonzero(bad.any(axis=0))
    if not len(chains):
        return []
    return [
        Finding(
            "step_size",
            "warning",
            f"The step size is too small for where {plural(len(chains), 'chain')} of "
            f"{len(rate)} {'is' if len(chains) == 1 else 'are'} now, by the acceptance rate: "
            f"{_listed(chains, means, bad, stats)}; {_aimed(target)}, and "
            f"{words.format(length[bad].max())}",
            value=float(means[bad].max()),
            threshold=float(limit[chains].min()),
            source="rule of thumb: a quarter of the rejections aimed at",
            remedy=_ANEW + "longer trajectories (a larger max_tree_depth) cost more and mend "
            "nothing.",
            where=tuple(f"chain {i}" for i in chains),
        )
    ]


def _lengths(stats, reached, shape) -> tuple[np.ndarray, float, str]:
    """Return how long trajectories are, `(3, chain)`, what is too long, and words for it."""
    if reached is not None:
        share = _halves(reached.astype(np.float64))
        return share, SATURATED, "{:.0%} of the trajectories there are cut off"
    if "n_steps" in stats and shape[1] > 2:
        steps = _halves(stats["n_steps"].astype(np.float64))
        middle = max(float(np.median(steps[0])), 1.0)
        return steps / middle, COSTLY, "trajectories there take {:.0f} times the usual steps"
    return np.zeros(shape), np.inf, ""


def _listed(chains: np.ndarray, means: np.ndarray, bad: np.ndarray, stats) -> str:
    return listing([_chain(int(i), means[:, i], bad[:, i], stats) for i in chains])


def _chain(i: int, means: np.ndarray, bad: np.ndarray, stats) -> str:
    """Return for example `chain 1: 0.07 (step size 0.52, that of other chains 0.11)`."""
    text = f"chain {i}: {means[0]:.2f}"
    if not bad.all():
        text = f"chain {i}: {means[1]:.2f} in the first half, {means[2]:.2f} in the second"
    sizes = stats.get("step_size")
    if sizes is None or len(sizes) < 2:
        return text
    own, others = sizes[i, -1], np.median(np.delete(sizes[:, -1], i))
    return f"{text} (step size {own:.2g}, of the other chains {others:.2g})"
