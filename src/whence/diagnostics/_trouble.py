"""The most severe fault of draws, from statistics that are cheap to compute."""

from collections.abc import Mapping, Sequence

import numpy as np

from ._chains import RHAT_LIMIT
from ._convergence import convergence
from ._names import beyond
from ._records import AbstractRecord, TellsTrouble

_LARGE = 2**22  # values; beyond that R-hat costs seconds


def trouble(
    positions: Sequence[np.ndarray],
    stats: Mapping[str, np.ndarray],
    *,
    chains: bool,
    record: AbstractRecord | None,
) -> str:
    """Return a phrase, or nothing.

    Args:
        positions: Arrays `(chain, draw, ...)`.
        stats: By ArviZ's names, `(chain, draw)`; read is `diverging`.
        chains: Whether the draws are those of Markov chains.
        record: Of the run, if it has one.
    """
    found = record.trouble() if isinstance(record, TellsTrouble) else []
    diverging = stats.get("diverging")
    if diverging is not None and diverging.any():
        found.append(f"{int(diverging.sum())} divergent transitions")
    finite = all(np.isfinite(x).all() for x in positions)
    if not finite:
        found.append("non-finite draws")
    if chains and finite and sum(x.size for x in positions) <= _LARGE:
        several = [x for x in positions if x.size and x.shape[0] > 1 and x.shape[1] >= 4]
        values = [float(np.nanmax(convergence(x).rhat, initial=1.0)) for x in several]
        if max(values, default=1.0) > RHAT_LIMIT:
            found.append(f"R-hat up to {beyond(max(values), RHAT_LIMIT)}, above {RHAT_LIMIT:g}")
    return " and ".join(found)
