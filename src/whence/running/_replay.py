"""`replay()`: run a stored run once more, and say whether the draws agree."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..core._engine import AbstractEngine
from ..core._provenance import python, versions
from ..core._target import AbstractTarget
from ._infer import fit
from ._job import Job, RunOptions
from ._stored import open_run, posterior_of, stored_layout, stored_outcome

MOST_Z = 5.0  # standard errors by which means may differ and still agree
# Of particles and fitted families one run does not tell the error of a mean: this much of a
# posterior standard deviation is taken for it.
ROUGH_ERROR = 0.02


@dataclasses.dataclass(frozen=True)
class Replay:
    """How a run agrees with itself run again.

    Attributes:
        tier: `"bitwise"`: all draws are equal to the last bit. `"statistical"`: the draws
            differ, and the posterior means agree within Monte Carlo error. `"different"`:
            neither.
        differences: Largest absolute difference of any draw, by variable.
        z: Largest difference of posterior means, in Monte Carlo standard errors, by variable.
        changed: What is not as it was: versions, platform; name to (then, now).
    """

    tier: str
    differences: Mapping[str, float]
    z: Mapping[str, float]
    changed: Mapping[str, tuple[Any, Any]]

    @property
    def ok(self) -> bool:
        """Whether the runs agree, bit for bit or statistically."""
        return self.tier != "different"

    def __str__(self) -> str:
        lines = {
            "bitwise": "The draws agree bit for bit.",
            "statistical": "The draws differ, but the posterior means agree within "
            f"{MOST_Z:g} Monte Carlo standard errors.",
            "different": "The draws differ, and so do the posterior means.",
        }[self.tier].splitlines()
        if self.tier != "bitwise":
            for name, value in self.differences.items():
                lines.append(
                    f"  {name}: draws differ by up to {value:.3g}, means by "
                    f"{self.z[name]:.2g} standard errors"
                )
        for name, (then, now) in self.changed.items():
            lines.append(f"  {name} was {then} and is {now}")
        if self.tier == "different" and not self.changed:
            lines.append("  Versions and platform are the same: is it the same model?")
        return "\n".join(lines)


def replay(
    folder: str | Path,
    target: AbstractTarget,
    *,
    engine: AbstractEngine | None = None,
    progress: bool | None = None,
    threads: int | None = None,
) -> Replay:
    """Run a stored run again from its manifest, and compare the draws.

    The store is only read. Of an unfinished run, what there is is compared.

    Args:
        folder: The store.
        target: The target of the run; its data must be the same.
        engine: The engine of the run, if it is not one of whence's own.
        progress: As for `infer`.
        threads: As for `infer`.

    Returns:
        Whether they agree, and in which tier.

    Raises:
        ValueError: For what `resume` refuses; if there are no draws yet.
    """
    options = RunOptions(progress, False, None, threads)
    stored = open_run(folder, target, engine)
    outcome = stored_outcome(stored, target)
    then = posterior_of(stored, outcome, target)
    steps = min(outcome.total, int(outcome.steps.max()))
    layout, vectorised = stored_layout(stored, target, None)
    content = stored.store.manifest
    own, key, start = stored.engine, stored.key, stored.start
    job = Job(target, own, key, None, steps, None, vectorised, layout, content, start)
    now = fit(job, options)
    length = then.num_draws
    before = {n: np.asarray(v) for n, v in then.variables.items()}
    after = {n: np.asarray(v)[: then.num_chains, :length] for n, v in now.variables.items()}
    chains = stored.engine.schedule.extendable
    return _compare(before, after, chains, _changed(content))


def _compare(before, after, chains: bool, changed) -> Replay:
    if {n: v.shape for n, v in before.items()} != {n: v.shape for n, v in after.items()}:
        nothing = dict.fromkeys(before, float("inf"))
        return Replay("different", nothing, nothing, changed)
    same = all(np.array_equal(before[n], after[n], equal_nan=True) for n in before)
    differences = {n: _largest(np.abs(before[n] - after[n])) for n in before}
    z = {n: _z(before[n], after[n], chains) for n in before}
    agree = all(value <= MOST_Z for value in z.values())
    tier = "bitwise" if same else "statistical" if agree else "different"
    return Replay(tier, differences, z, changed)


def _z(a: np.ndarray, b: np.ndarray, chains: bool) -> float:
    """Return the largest difference of means in their standard errors."""
    spread = a.var(axis=(0, 1)) + b.var(axis=(0, 1))
    variance = spread * ROUGH_ERROR**2
    if chains:
        from ..diagnostics import convergence

        # The ESS of the ranks serves for that of the mean; unknown with too few draws.
        ess = [np.nan_to_num(convergence(draws).ess_bulk, nan=1.0) for draws in (a, b)]
        variance = a.var(axis=(0, 1)) / ess[0] + b.var(axis=(0, 1)) / ess[1]
    gap = np.abs(a.mean(axis=(0, 1)) - b.mean(axis=(0, 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return _largest(np.where(gap == 0, 0.0, gap / np.sqrt(variance)))


def _largest(values: np.ndarray) -> float:
    return float(np.max(values, initial=0.0))


def _changed(then: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    before = {**{name: then[name] for name in ("python", "backend")}, **then["versions"]}
    after = {"python": python(), "backend": jax.default_backend(), **versions()}
    return {n: (before[n], after[n]) for n in before if before[n] != after.get(n)}
