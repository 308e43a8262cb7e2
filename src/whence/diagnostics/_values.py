"""Checks of the values themselves: non-finite, constant, as good as the same."""

import numpy as np

from ._convergence import varies
from ._data import Draws
from ._names import listing, plural
from ._report import Finding

SAME = 0.9999  # correlation; two latents are then known 100 times worse than what they share
MOST = 500  # latents whose correlations are looked at
ENOUGH = 10_000  # draws for that


def check_values(draws: Draws) -> tuple[list[Finding], dict[str, float]]:
    """Look for non-finite and constant values, and for latents that only go together."""
    nonfinite, num_nonfinite = _nonfinite(draws)
    constant, num_constant = _constant(draws)
    numbers = {
        "num_chains": float(draws.num_chains),
        "num_draws": float(draws.num_draws),
        "nonfinite_draws": float(num_nonfinite),
        "constant_elements": float(num_constant),
    }
    return [nonfinite, *constant, *_correlated(draws)], numbers


def _nonfinite(draws: Draws) -> tuple[Finding, int]:
    bad_draws = np.zeros(draws.leading, bool)
    where = []
    for name, shape, values in draws.elements():
        if not np.issubdtype(values.dtype, np.inexact):
            continue
        bad = ~np.isfinite(values)
        if bad.any():
            bad_draws |= bad.any(axis=2)
            counts = bad.sum(axis=(0, 1))
            where += [
                (int(counts[i]), draws.name(name, shape, int(i)))
                for i in np.flatnonzero(counts)
            ]
    count = int(bad_draws.sum())
    if not count:
        return Finding("nonfinite", "ok", "All draws are finite", 0.0, 0.0), 0
    names = tuple(name for _, name in sorted(where, key=lambda pair: -pair[0]))
    chains = np.flatnonzero(bad_draws.any(axis=1))
    return Finding(
        "nonfinite",
        "error",
        f"{count} of {bad_draws.size} draws have a NaN or infinite value in {listing(names)} "
        f"(chain {listing(map(str, chains))}); no statistic of these can be computed",
        value=float(count),
        threshold=0.0,
        remedy="Look for an overflow or a logarithm of zero in the model; check the target, "
        "or use float64.",
        where=names,
    ), count


def _constant(draws: Draws) -> tuple[list[Finding], int]:
    """Note elements that never vary, in no chain and not between chains.

    Many are so by construction (a fixed value, the first row of the Cholesky factor of a
    correlation matrix), so this alone is no reason for alarm; a chain that does not move
    is, and `check_chains` looks for that.
    """
    names = []
    for name, shape, values in draws.elements():
        finite = np.isfinite(values).all(axis=(0, 1)) if values.dtype.kind in "fc" else True
        still = ~varies(values) & finite
        names += [draws.name(name, shape, int(i)) for i in np.flatnonzero(still)]
    if not names or draws.leading == (1, 1):
        return [], 0
    finding = Finding(
        "constant",
        "note",
        f"{plural(len(names), 'element')} never changed: {listing(names)}",
        value=float(len(names)),
        remedy="Nothing, if they are fixed or constant by construction (the first row of a "
        "Cholesky factor, for example); they are left out of the other checks.",
        where=tuple(names),
    )
    return [finding], len(names)


def _correlated(draws: Draws) -> list[Finding]:
    """Note latents that the data do not tell apart: their draws lie on a line."""
    size = draws.positions.shape[2]
    if not draws.unconstrained or not 2 <= size <= MOST or np.prod(draws.leading) < 10:
        return []
    flat = draws.positions.reshape(-1, size)
    flat = flat[:: max(len(flat) // ENOUGH, 1)].astype(float)
    with np.errstate(all="ignore"):  # constant and non-finite ones are told above
        found = np.triu(np.corrcoef(flat, rowvar=False), 1)
    pairs = np.argwhere(np.abs(found) > SAME)
    if not len(pairs):
        return []
    values = found[tuple(pairs.T)]
    order = np.argsort(-np.abs(values), kind="stable")
    names = draws.coordinates()
    where = dict.fromkeys(names[i] for pair in pairs[order] for i in pair)
    largest = float(values[order[0]])
    finding = Finding(
        "correlation",
        "note",
        f"{listing(where)} go together: draws of the first two have a correlation of "
        f"{np.trunc(largest * 1e8) / 1e8:.8g}. The data tell of a combination of them, and "
        "little of each",
        value=abs(largest),
        threshold=SAME,
        source="rule of thumb",
        remedy="If each is to be known by itself: centre the inputs (`x - x.mean()`), leave "
        "one out, or give a prior that tells them apart. Neighbours on a smooth curve are so, "
        "too.",
        where=tuple(where),
    )
    return [finding]
