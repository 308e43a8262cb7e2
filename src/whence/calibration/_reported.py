"""What tests by ranks share: a level for every scalar, a finding each, and a picture."""

import math
from typing import Any

import numpy as np

from ..diagnostics import Finding, Report
from ..diagnostics._names import Namer, listing, plural
from ._rank_messages import probability
from ._uniform import band, counts_below

_SEVERITIES = ("error", "warning", "note", "ok")


class RankTest:
    """Ranks of every quantity, uniform if all is right; judged by its `report`."""

    report: Report
    ranks: dict[str, np.ndarray]
    p_values: dict[str, np.ndarray]
    num_draws: int
    alpha: float
    dims: dict[str, tuple[str, ...]]
    coords: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, as far as can be told."""
        return self.report.ok

    def __str__(self) -> str:
        """Return the report as text."""
        return str(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    @property
    def num_quantities(self) -> int:
        """Number of scalars compared; levels are divided by it (Bonferroni)."""
        return sum(math.prod(ranks.shape[1:]) for ranks in self.ranks.values())

    def _explain(self, name: str, ranks: np.ndarray) -> tuple[str, str]:
        """Return what ranks of a scalar that are not uniform mean, and a remedy."""
        raise NotImplementedError

    def _judge(self, name: str, right: str, wrong: str, source: str) -> Finding:
        p = np.minimum(1.0, self.p_values[name].ravel() * self.num_quantities)
        bad = [int(i) for i in np.argsort(p, kind="stable") if p[i] <= self.alpha]
        smallest = float(p.min())
        if not bad:
            message = f"{right} ({probability(smallest)})"
            return Finding(name, "ok", message, smallest, self.alpha, source)
        ranks = self.ranks[name]
        namer, inner = Namer(self.dims, self.coords), ranks.shape[1:]
        where = tuple(namer(name, inner, i) for i in bad)
        meaning, remedy = self._explain(name, ranks.reshape(len(ranks), -1)[:, bad[0]])
        of = f" for {listing(where)}" if inner else ""
        message = f"{wrong} ({probability(smallest)}){of}: {meaning}"
        return Finding(name, "error", message, smallest, self.alpha, source, remedy, where)

    def _plot(self, level: float, axes: Any = None) -> Any:
        """Draw ECDFs minus the uniform one, in a band that is left with a probability."""
        from ._plot import plot_ecdf_difference

        size = len(next(iter(self.ranks.values())))
        low, high = band(size, self.num_draws, level)
        counts = {
            name: np.stack([counts_below(x, self.num_draws) for x in ranks.reshape(size, -1).T])
            for name, ranks in self.ranks.items()
        }
        return plot_ecdf_difference(counts, low, high, size, axes)

    def _summed_up(self) -> tuple[str, str]:
        """Return how many scalars there are, and the level, in words."""
        names = plural(self.num_quantities, "quantity", "quantities")
        return names, f"probability of a false alarm at most {self.alpha:g}"


def worst_first(findings: list[Finding]) -> tuple[Finding, ...]:
    """Return findings in the order of their severity."""
    return tuple(sorted(findings, key=lambda f: _SEVERITIES.index(f.severity)))
