"""`JointTest`: has the joint distribution of parameters and data survived a transition?"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import ndtr

from ..diagnostics import Finding, Report
from ..diagnostics._names import plural
from ._rank_messages import shape
from ._reported import RankTest, worst_first
from ._uniform import p_value

SOURCE = "Geweke 2004, doi:10.1198/016214504000001132"
MEANING = {
    "narrow": "values end up in the tails of the prior too often",
    "wide": "values end up in the middle of the prior too often",
    "low": "values end up too high",
    "high": "values end up too low",
    "other": "values end up distributed otherwise than the prior",
}
REMEDY = (
    "Either the transition does not leave the posterior invariant (an acceptance rule, a "
    "missing Metropolis test, a step size too large without one), or density and simulator "
    "are not of the same model (a missing Jacobian, variance for scale). If another engine "
    "fails alike, suspect the model."
)
_TESTS = 3  # of every quantity: ranks at the end, drift of location, drift of spread


@dataclass(frozen=True)
class JointTest(RankTest):
    """What became of parameters and data drawn from the joint distribution.

    Attributes:
        engine: Name of the engine.
        ranks: Ranks of values at the end among `num_draws` draws from the prior that belong
            to this replicate alone, by quantity, `(replicate, ...)`.
        drift: For every quantity, z-scores of the drift in location and in spread since the
            start, `(2, ...)`, on the scale of the prior's distribution function.
        memory: Correlation of values at the end with those at the start, by quantity.
        num_draws: Draws that ranks are among.
        iterations: Transitions, each followed by new data.
        alpha: Probability that a correct engine fails, at most.
        failures: Replicates in which the engine failed.
        moved: Share of replicates whose position is another one at the end.
        seconds: Duration in seconds.
        dims: Names of the axes, by quantity.
        coords: Labels along named axes.
    """

    engine: str
    ranks: dict[str, np.ndarray]
    drift: dict[str, np.ndarray]
    memory: dict[str, np.ndarray]
    num_draws: int
    iterations: int
    alpha: float
    failures: int
    moved: float
    seconds: float
    dims: dict[str, tuple[str, ...]]
    coords: dict[str, Any]

    @property
    def num_replicates(self) -> int:
        """Number of replicates."""
        return len(next(iter(self.ranks.values())))

    @cached_property
    def p_values(self) -> dict[str, np.ndarray]:
        """P-value of every scalar, adjusted for its three tests but not for other scalars."""
        found = {}
        for name, ranks in self.ranks.items():
            end = np.apply_along_axis(p_value, 0, ranks, self.num_draws)
            drift = 2 * ndtr(-np.abs(self.drift[name])).min(axis=0)
            found[name] = np.asarray(np.minimum(1.0, _TESTS * np.minimum(end, drift)))
        return found

    @cached_property
    def report(self) -> Report:
        """All findings, with remedies."""
        right = "distributed as in the prior"
        judged = [self._judge(n, right, f"not {right}", SOURCE) for n in self.ranks]
        others = [f for f in (self._failures(), self._still(), self._slow()) if f is not None]
        wrong = sum(len(f.where) or 1 for f in judged if f.is_problem)
        names, level = self._summed_up()
        verdict = f"No error found in {names} ({level})."
        if wrong:
            verdict = f"Wrong: {wrong} of {names} leave their distribution ({level})."
        elif any(f.is_problem for f in others):
            verdict = f"Nothing can be said: {next(f for f in others if f.is_problem).message}."
        title = (
            f"{self.engine}, {self.num_replicates} replicates of {self.iterations} transitions"
        )
        smallest = min(float(p.min()) for p in self.p_values.values())
        return Report(
            worst_first([*judged, *others]), verdict, {"smallest_p_value": smallest}, title
        )

    def plot(self) -> Any:
        """Draw the ECDF of values at the end on the scale of the prior, minus uniform.

        Returns:
            A matplotlib figure; `.savefig(path)` writes it.
        """
        return self._plot(self.alpha / (_TESTS * self.num_quantities))

    def _explain(self, name: str, ranks: np.ndarray) -> tuple[str, str]:
        return MEANING[shape(ranks, self.num_draws)], REMEDY

    def _failures(self) -> Finding | None:
        if not self.failures:
            return None
        message = (
            f"the engine failed in {self.failures} of "
            f"{plural(self.num_replicates, 'replicate')}"
        )
        remedy = (
            "Its outcome is in `whence.infer` on one data set; a smaller step size may help."
        )
        return Finding("failures", "error", message, float(self.failures), 0.0, remedy=remedy)

    def _still(self) -> Finding | None:
        if self.moved > 0:
            return None
        return Finding(
            "still",
            "error",
            "no replicate moved, so nothing was tested",
            0.0,
            remedy="Use a smaller step size; raise `steps` for an engine that records where a "
            "step starts.",
        )

    def _slow(self) -> Finding | None:
        slowest = max(float(np.nanmax(m, initial=-1)) for m in self.memory.values())
        if slowest < 0.9:
            return None
        return Finding(
            "memory",
            "note",
            f"some values hardly change (correlation {slowest:.2f} of the end with the start), "
            "which leaves errors little time to show",
            slowest,
            0.9,
            remedy="Raise `iterations`, or condition on fewer data: the fewer, the further a "
            "transition and new data move.",
        )
