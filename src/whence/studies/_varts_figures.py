"""Figures of the study of variance-adaptive Thompson sampling."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..models.bandit import PolicyRun, Simulation, bayes_regret_bound
from ._varts_problems import (
    ARM_COUNTS,
    ARMS,
    HORIZONS,
    BanditProblem,
    PublishedRegret,
    own_prior,
)

_SHOWN = {
    "VarTS": "tab:blue",
    "TS, variances known": "black",
    "TS, expected variance": "tab:orange",
    "TS, a quarter of it": "tab:red",
    "TS, variance 0.05": "tab:red",
    "Honda-Takemura, a = -1/2": "tab:green",
    "UCB1": "tab:purple",
    "UCB-V": "tab:brown",
    "UCB1-Normal": "tab:gray",
}


def draw_regret(path: Path, results: Mapping[str, tuple[BanditProblem, Simulation]]) -> None:
    """Draw mean regret by round with bands of two standard errors, one panel per problem."""
    import matplotlib.pyplot as plt

    shown = [pair for pair in results.values() if "VarTS" in pair[1]]
    if not shown:
        return
    figure, axes = plt.subplots(
        1,
        len(shown),
        figsize=(4.2 * len(shown), 4.4),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    handles: dict[str, Any] = {}
    for axis, (problem, runs) in zip(axes[0], shown):
        for name, colour in _SHOWN.items():
            if name in runs:
                label = "TS, variance too small" if colour == "tab:red" else name
                handles[label] = _curve(axis, runs[name], colour)
        if problem.bound is not None:
            rounds = runs["VarTS"].rounds
            limit = [bayes_regret_bound(problem.bound, horizon=int(n)) for n in rounds]
            (line,) = axis.plot(rounds, limit, "--", color="tab:blue")
            handles["VarTS, proved bound"] = line
        # Long titles go on two lines.
        title = problem.title.replace(": ", ":\n").replace(" whose", "\nwhose")
        axis.set_title(title, fontsize="medium")
        axis.set(xscale="log", yscale="log", xlabel="rounds")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter("{x:,.0f}")
    axes[0, 0].set_ylabel("mean regret")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _curve(axis: Any, run: PolicyRun, colour: str) -> Any:
    estimate = run.bayes_regret()
    low, high = (estimate.mean + sign * 2 * estimate.standard_error for sign in (-1, 1))
    (line,) = axis.plot(run.rounds, estimate.mean, color=colour)
    low = np.maximum(low, estimate.mean / 10)  # for the sake of the logarithm
    axis.fill_between(run.rounds, low, high, color=colour, alpha=0.2, lw=0)
    return line


def draw_growth(
    path: Path,
    by_horizon: Mapping[int, PolicyRun],
    by_arms: Mapping[int, PolicyRun],
    horizon: int,
) -> None:
    """Draw the regret of `VarTS` by rounds and by arms, with bounds and references."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.8), layout="constrained")
    rounds, arms = list(by_horizon), list(by_arms)
    _points(left, by_horizon, HORIZONS)
    bounds = [bayes_regret_bound(own_prior(4.0), horizon=n) for n in rounds]
    left.plot(rounds, bounds, "--", color="tab:blue", label="proved bound")
    left.set(xscale="log", yscale="log", xlabel=f"rounds ({ARMS} arms)", ylabel="mean regret")
    left.legend()
    _points(right, by_arms, ARM_COUNTS)
    bounds = [bayes_regret_bound(own_prior(4.0, k), horizon=horizon) for k in arms]
    right.plot(arms, bounds, "--", color="tab:blue")
    right.set(xscale="log", yscale="log", xlabel=f"arms ({horizon} rounds)")
    for axis, ticks in ((left, rounds), (right, arms)):
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter("{x:,.0f}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _points(
    axis: Any, runs: Mapping[int, PolicyRun], references: Mapping[int, PublishedRegret]
):
    estimates = [run.bayes_regret() for run in runs.values()]
    means = [e.mean[-1] for e in estimates]
    errors = [2 * e.standard_error[-1] for e in estimates]
    axis.errorbar(list(runs), means, errors, marker="o", color="tab:blue", label="VarTS")
    known = [n for n in runs if n in references]
    theirs = [references[n].mean for n in known]
    label = "independent simulation"
    axis.plot(known, theirs, "x", color="black", ms=9, label=label, zorder=3)
