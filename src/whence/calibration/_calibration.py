"""`Calibration`: ranks of the truth among draws, and whether they are uniform."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..diagnostics import Finding, Report
from ..diagnostics._names import plural
from ._rank_messages import explain
from ._reported import RankTest, worst_first
from ._uniform import p_value

SOURCE = (
    "Talts et al. 2018, arXiv:1804.06788; Säilynoja, Bürkner and Vehtari 2022, "
    "doi:10.1007/s11222-022-10090-6"
)

_FEW = 0.1  # share of fits whose draws may be dependent without effect on the ranks


@dataclass(frozen=True)
class Calibration(RankTest):
    """Ranks of the truth among posterior draws, over many simulated data sets.

    If model and engine are right, every rank is uniform on `0..num_draws`. `print` it for a
    verdict in words; test `calibration.ok`.

    Attributes:
        engine: Name of the engine.
        ranks: By quantity, `(simulation, ...)`, of the simulations whose fit succeeded.
        truth: Values drawn from the prior, of the same shapes.
        num_draws: `L`, the number of draws that ranks are among.
        alpha: Probability that a calibrated engine is called not calibrated, at most.
        failures: What went wrong, by number of simulation.
        ess: Smallest effective number of draws of every simulation; NaN if it failed.
        divergent: Number of simulations with divergent transitions.
        seconds: Durations: `simulate`, `fit`, `total`, in seconds.
        dims: Names of the axes, by quantity.
        coords: Labels along named axes.
        stuck: Number of simulations with a chain that did not move, or hardly.
    """

    engine: str
    ranks: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    num_draws: int
    alpha: float
    failures: dict[int, str]
    ess: np.ndarray
    divergent: int
    seconds: dict[str, float] = field(default_factory=dict)
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    coords: dict[str, Any] = field(default_factory=dict)
    stuck: int = 0

    @property
    def num_simulations(self) -> int:
        """Number of simulations, failed ones included."""
        return len(self.ess)

    @cached_property
    def p_values(self) -> dict[str, np.ndarray]:
        """P-value of every scalar by itself, not adjusted for how many there are."""
        return {
            name: np.asarray(np.apply_along_axis(p_value, 0, ranks, self.num_draws))
            for name, ranks in self.ranks.items()
        }

    @cached_property
    def report(self) -> Report:
        """All findings, with remedies."""
        right, false = "ranks are uniform", "ranks are not uniform"
        ranks = [self._judge(name, right, false, SOURCE) for name in self.ranks]
        wrong = [finding for finding in ranks if finding.is_problem]
        dependence = self._dependence(bool(wrong))
        others = [self._failures(), self._stuck(), dependence, self._divergences()]
        findings = worst_first([*ranks, *(f for f in others if f is not None)])
        smallest = min((float(p.min()) for p in self.p_values.values()), default=math.nan)
        numbers = {
            "smallest_p_value": smallest,
            "failures": float(len(self.failures)),
            "ess": float(np.nanmin(self.ess)) if self.ranks else math.nan,
        }
        title = f"{self.engine}, {self.num_simulations} simulated data sets"
        if self.ranks:
            title += f", ranks among {self.num_draws} draws"
        return Report(findings, self._verdict(wrong), numbers, title)

    def plot(self, axes: Any = None) -> Any:
        """Draw the ECDF of every quantity's ranks minus that of uniform ranks.

        A line that leaves the grey band anywhere makes the engine not calibrated. A curve
        above zero on the left and below on the right: too narrow; the reverse: too wide;
        all above: too high; all below: too low.

        Args:
            axes: Matplotlib axes to draw in, one for each variable; by default a new figure,
                of the first 16 variables.

        Returns:
            The matplotlib figure; `.savefig(path)` writes it.
        """
        return self._plot(self.alpha / self.num_quantities, axes)

    def to_datatree(self) -> Any:
        """Return an `xarray.DataTree` with groups `prior_sbc`, `ranks` and `truth`.

        `prior_sbc` holds `(rank + 1/2) / (num_draws + 1)`, which
        `arviz.plot_ecdf_pit` takes.
        """
        import xarray

        def axes(name, value):
            named = self.dims.get(name, ())
            rest = value.ndim - 1
            if len(named) != rest:
                named = tuple(f"{name}_dim_{i}" for i in range(rest))
            return named

        def group(values, lead, map_value):
            arrays = {
                name: ((*lead, *axes(name, value)), map_value(value))
                for name, value in values.items()
            }
            used = {axis for names, _ in arrays.values() for axis in names}
            coords = {axis: list(self.coords[axis]) for axis in used & set(self.coords)}
            return xarray.Dataset(arrays, coords=coords)

        pit = lambda ranks: ((ranks + 0.5) / (self.num_draws + 1))[None]
        groups = {
            "/": xarray.Dataset(attrs={"num_draws": self.num_draws, "engine": self.engine}),
            "/prior_sbc": group(self.ranks, ("chain", "draw"), pit),
            "/ranks": group(self.ranks, ("simulation",), np.asarray),
            "/truth": group(self.truth, ("simulation",), np.asarray),
        }
        return xarray.DataTree.from_dict(groups)

    def _explain(self, name: str, ranks: np.ndarray) -> tuple[str, str]:
        return explain(name, ranks, self.num_draws)

    def _failures(self) -> Finding | None:
        if not self.failures:
            return None
        number, first = next(iter(self.failures.items()))
        return Finding(
            "failures",
            "error",
            f"{len(self.failures)} of {plural(self.num_simulations, 'fit')} failed; the first "
            f"was number {number}: {first}",
            float(len(self.failures)),
            0.0,
            remedy="Fits that fail are not a random part of all, so the ranks of the others "
            "need not be uniform. Priors with very heavy tails simulate data that no one "
            "would see: tighten them; or reparameterise.",
        )

    def _stuck(self) -> Finding | None:
        if not self.stuck:
            return None
        return Finding(
            "stuck",
            "warning",
            f"{self.stuck} of {plural(self.num_simulations, 'fit')} had chains that did not "
            "move, or hardly",
            float(self.stuck),
            0.0,
            remedy="Draws of such a chain are all at one place, where they count as too "
            "narrow. Use smaller steps (a higher target acceptance) or more warm-up.",
        )

    def _dependence(self, is_wrong: bool) -> Finding | None:
        short = int(np.sum(self.ess < self.num_draws))
        if short <= _FEW * self.num_simulations:
            return None
        return Finding(
            "dependence",
            "warning" if is_wrong else "note",
            f"{short} of {plural(self.num_simulations, 'fit')} had fewer effective draws "
            f"than the {self.num_draws} that ranks are among (as few as "
            f"{np.nanmin(self.ess):.0f}); dependent draws look like a posterior that is too "
            "narrow",
            float(short),
            None,
            remedy="Make the chains longer, or rank among fewer draws (`num_draws`).",
        )

    def _divergences(self) -> Finding | None:
        if not self.divergent:
            return None
        return Finding(
            "divergences",
            "note",
            f"{self.divergent} of {plural(self.num_simulations, 'fit')} had divergent "
            "transitions",
            float(self.divergent),
            None,
            remedy="Reparameterise, or raise the target acceptance.",
        )

    def _verdict(self, wrong: list[Finding]) -> str:
        names, level = self._summed_up()
        if wrong:
            count = sum(len(finding.where) for finding in wrong)
            return (
                f"Not calibrated: ranks of {count} of {names} are not uniform ({level}). If "
                "another engine fails alike, suspect the model; if it does not, the engine."
            )
        if not self.ranks:
            return "Nothing can be said: all fits failed."
        if self.failures:
            return f"Some fits failed; ranks of the others are uniform in all {names}."
        return f"No miscalibration found in {names} ({level})."
