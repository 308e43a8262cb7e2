"""`Until`: run until the posterior is good enough, and say what ended the run."""

import time
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np

from ..core._convert import number, positive, whole
from ..core._engine import AbstractEngine, Sample

FIRST_DRAWS = 100  # draws per chain before the first look
SMALLEST_STEP, LARGEST_STEP = 1.25, 2.0  # growth of a run between looks


class Until(eqx.Module):
    """When a run is to end; whichever comes first.

    All chains advance to the same number of draws, are looked at together, and go on by a
    quarter to as much again, whichever the effective sample size so far suggests. The looks
    depend on the draws alone, so the same key gives the same posterior; only `max_seconds`
    goes by the clock.

    `ess` and `rhat` are goals, reached together; the others are limits.

    Attributes:
        ess: Least bulk and tail effective sample size of any latent, all chains together.
        rhat: Most rank-normalised split R-hat of any latent, for example 1.01.
        max_draws: Most draws per chain.
        max_seconds: Most seconds, warm-up and compilation included.

    References:
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), doi:10.1214/20-BA1221.
    """

    ess: float | None = eqx.field(
        default=None, kw_only=True, converter=positive("ess", optional=True)
    )
    rhat: float | None = eqx.field(
        default=None, kw_only=True, converter=number("rhat", above=1, optional=True)
    )
    max_draws: int | None = eqx.field(
        default=None, kw_only=True, converter=whole("max_draws", least=1, optional=True)
    )
    max_seconds: float | None = eqx.field(
        default=None, kw_only=True, converter=positive("max_seconds", optional=True)
    )

    def __check_init__(self):
        if not any(vars(self).values()):
            raise ValueError(f"`Until` must be given at least one of {', '.join(vars(self))}.")

    @property
    def has_goal(self) -> bool:
        """Whether there is a goal, not only a limit."""
        return self.ess is not None or self.rhat is not None


class Quality(NamedTuple):
    """How good draws are: the worst over all latents.

    Attributes:
        ess: Least bulk or tail effective sample size; 0 if it is not defined.
        rhat: Largest R-hat; infinite if it is not defined.
    """

    ess: float
    rhat: float

    def reaches(self, until: Until) -> bool:
        """Whether the goals of `until` are reached."""
        enough = until.ess is None or self.ess >= until.ess
        return enough and (until.rhat is None or self.rhat <= until.rhat)


def quality(sample: Sample | None) -> Quality:
    """Return the worst effective sample size and R-hat over all entries of a position."""
    from ..diagnostics import convergence

    if sample is None:
        return Quality(0.0, np.inf)
    ess, rhat = np.inf, 1.0
    for leaf in jax.tree.leaves(sample.positions):
        if leaf.size:
            found = convergence(np.asarray(leaf))
            smaller = np.minimum(found.ess_bulk, found.ess_tail)
            # NaN: too few draws, non-finite ones, or a chain that never moved.
            ess = min(ess, float(np.min(np.nan_to_num(smaller, nan=0.0))))
            rhat = max(rhat, float(np.max(np.nan_to_num(found.rhat, nan=np.inf))))
    return Quality(ess, rhat)


class StoppingRule:
    """Tells the loop how far to go next, and keeps what is to be said of the end.

    Attributes:
        deadline: Moment, by `time.perf_counter`, at which to stop; None for never.
        stopped: What ended the run, in words; None until it has ended.
        reached: Whether the goals were reached; True if there were none.
    """

    def __init__(self, until: Until, engine: AbstractEngine):
        """Start the clock."""
        self.until = until
        self.warmup = engine.schedule.warmup
        seconds = until.max_seconds
        self.deadline = None if seconds is None else time.perf_counter() + seconds
        self.stopped: str | None = None
        self.reached = not until.has_goal

    def first(self) -> int:
        """Return the number of steps before the first look."""
        return self.warmup + self._limited(FIRST_DRAWS)

    def next(self, steps: int, sample: Callable[[], Sample | None]) -> int | None:
        """Return the number of steps before the next look, or None to end here."""
        draws = steps - self.warmup
        found = quality(sample()) if self.until.has_goal else None
        if found is not None and found.reaches(self.until):
            self._end("goal", draws, found)
            return None
        if self.until.max_draws is not None and draws >= self.until.max_draws:
            self._end("max_draws", draws, found)
            return None
        return self.warmup + self._limited(int(np.ceil(draws * self._growth(found))))

    def time_over(self, steps: int, sample: Callable[[], Sample | None]) -> None:
        """Note that the clock ended the run."""
        draws = max(steps - self.warmup, 0)
        found = quality(sample()) if self.until.has_goal and draws else None
        self.reached |= found is not None and found.reaches(self.until)
        self._end("max_seconds", draws, found)

    def _growth(self, found: Quality | None) -> float:
        if found is None or self.until.ess is None or found.ess >= self.until.ess:
            return 1.5  # waiting for the clock, or for R-hat
        wish = 1.1 * self.until.ess / max(found.ess, 1.0)
        return float(np.clip(wish, SMALLEST_STEP, LARGEST_STEP))

    def _limited(self, draws: int) -> int:
        most = self.until.max_draws
        return draws if most is None else min(draws, most)

    def _end(self, why: str, draws: int, found: Quality | None) -> None:
        words = {
            "goal": "The goal was reached",
            "max_draws": "The most draws allowed (`max_draws`) were made",
            "max_seconds": f"The {self.until.max_seconds or 0:g} s of `max_seconds` are over",
        }
        self.reached |= why == "goal"
        text = f"{words[why]}, after {draws} draws per chain"
        if found is not None:
            goals = {"ESS at least": self.until.ess, "R-hat at most": self.until.rhat}
            asked = " and ".join(f"{n} {v:g}" for n, v in goals.items() if v is not None)
            text += f": ESS {found.ess:.0f}, R-hat {found.rhat:.4g} (asked: {asked})"
        self.stopped = f"{text}."
