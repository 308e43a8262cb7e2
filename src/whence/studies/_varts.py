"""Variance-adaptive Thompson sampling: regret by problem, policy, horizon and arms.

After Saha and Kveton (2024), "Only pay for what is uncertain: variance-adaptive Thompson
sampling", ICLR, whose figures are not tabulated; the protocol here is complete by itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.random as jr
import numpy as np

from ..models import bandit
from ..models.bandit import PolicyRun, Simulation
from ._study import Request, Study, Table
from ._varts_figures import draw_growth, draw_regret
from ._varts_problems import (
    ARM_COUNTS,
    ARMS,
    HORIZON,
    HORIZONS,
    BanditProblem,
    PublishedRegret,
    learning,
    own_prior,
    problems,
)

REFERENCE_INSTANCES = 2_000


class StudySize(NamedTuple):
    """How large a study is."""

    instances: int  # instances of each problem
    horizon: int = HORIZON  # rounds of each problem
    # names of the problems
    problems: Sequence[str] = ("p1", "p2", "p4", "bernoulli", "beta", "uniform")
    horizons: Sequence[int] = tuple(HORIZONS)  # horizons of the growth with rounds
    arms: Sequence[int] = (2, 5, 10, 20, 50)  # numbers of arms of the growth with these


PLANS = {"small": StudySize(200), "full": StudySize(2_000)}
REGRET_COLUMNS = ("mean", "median", "95% quantile", "reference", "z")


def play(problem: BanditProblem, plan: StudySize, key: Any) -> Simulation:
    """Play all policies of a problem on the same instances and rewards."""
    key_instances, key_play = jr.split(key)
    instances = problem.instances(plan.instances, key_instances)
    policies = {name: make(instances) for name, make in problem.policies.items()}
    return bandit.simulate(policies, instances, horizon=plan.horizon, key=key_play)


def grow(arms: int, horizon: int, plan: StudySize, key: Any) -> PolicyRun:
    """Play `VarTS` with its own prior, expected variance 1/3."""
    prior = own_prior(4.0, arms)
    key_instances, key_play = jr.split(key)
    instances = bandit.sample_instances(prior, instances=plan.instances, key=key_instances)
    return bandit.simulate(
        {"VarTS": learning(prior)},
        instances,
        horizon=horizon,
        key=key_play,
        common_random_numbers=False,
    )["VarTS"]


def z_mean(run: PolicyRun, reference: PublishedRegret) -> float:
    """Return the difference of mean regrets in standard errors of both.

    Where that of the reference was not kept, it is taken from the spread of this run and the
    number of instances of the reference.
    """
    spread = run.final.std(ddof=1)
    theirs = reference.error
    if theirs is None:
        theirs = spread / np.sqrt(REFERENCE_INSTANCES)
    mine = spread / np.sqrt(len(run.final))
    return float((run.final.mean() - reference.mean) / np.hypot(mine, theirs))


def z_median(run: PolicyRun, reference: PublishedRegret) -> float:
    """Return the difference of medians in standard errors of both, beyond rounding.

    The standard error of a median is a half of the distance between the order statistics
    one standard error to either side.
    """
    assert reference.median is not None
    error = 0.0
    for num in (len(run.final), REFERENCE_INSTANCES):
        step = 0.5 / np.sqrt(num)
        low, high = np.quantile(run.final, (0.5 - step, 0.5 + step))
        error = np.hypot(error, (high - low) / 2)
    gap = np.median(run.final) - reference.median
    return float(np.sign(gap) * max(abs(gap) - 0.5, 0) / error)


def _entries(run: PolicyRun, reference: PublishedRegret | None) -> list[str]:
    """Return the columns of one run."""
    estimate = run.bayes_regret()
    median, high = run.quantiles()[:, -1]
    row = [f"{estimate.mean[-1]:.1f} ± {estimate.standard_error[-1]:.1f}"]
    row += [f"{median:.1f}", f"{high:.0f}"]
    if reference is None:
        return [*row, "", ""]
    theirs = f"{reference.mean:g}"
    theirs += f" ± {reference.error:g}" if reference.error is not None else ""
    z = f"{z_mean(run, reference):+.1f}"
    if reference.median is not None:
        theirs += f", median {reference.median:g}"
        z += f", median {z_median(run, reference):+.1f}"
    return [*row, theirs, z]


class Results(NamedTuple):
    """What was played."""

    problems: dict[str, Simulation]  # all policies, by name of the problem
    horizons: dict[int, PolicyRun]  # `VarTS`, by number of rounds
    arms: dict[int, PolicyRun]  # `VarTS`, by number of arms


def play_all(plan: StudySize, key: Any, request: Request) -> Results:
    """Play all problems, horizons and numbers of arms."""
    request.say(f"{len(plan.problems)} problems, then VarTS by rounds and by arms")
    problem = [(name, plan, jr.fold_in(key, i)) for i, name in enumerate(plan.problems)]
    rounds = [(ARMS, n, plan, jr.fold_in(key, 100 + i)) for i, n in enumerate(plan.horizons)]
    wide = [(n, plan.horizon, plan, jr.fold_in(key, 200 + i)) for i, n in enumerate(plan.arms)]
    return Results(
        dict(zip(plan.problems, request.map(_play_named, problem))),
        dict(zip(plan.horizons, request.map(grow, rounds))),
        dict(zip(plan.arms, request.map(grow, wide))),
    )


def _play_named(name: str, plan: StudySize, key: Any) -> Simulation:
    return play(problems()[name], plan, key)


def report(results: Results, plan: StudySize, out: Path) -> list[Table]:
    """Draw the figures and return the tables."""
    every, tables = problems(), []
    # References are for one number of rounds.
    known = lambda references: references if plan.horizon == HORIZON else {}
    for name, runs in results.problems.items():
        references = known(every[name].references)
        title = f"{every[name].title}: regret after {plan.horizon} rounds, "
        rows = [[policy, *_entries(r, references.get(policy))] for policy, r in runs.items()]
        title += f"{plan.instances} instances"
        tables.append(Table(name, title, ("policy", *REGRET_COLUMNS), rows))
    rows = [[f"{n}", *_entries(r, HORIZONS.get(n))] for n, r in results.horizons.items()]
    title = f"Regret of VarTS by number of rounds, {ARMS} arms, {plan.instances} instances"
    tables.append(Table("horizons", title, ("rounds", *REGRET_COLUMNS), rows))
    references = known(ARM_COUNTS)
    rows = [[f"{k}", *_entries(r, references.get(k))] for k, r in results.arms.items()]
    title = f"Regret of VarTS by number of arms, {plan.horizon} rounds"
    title += f", {plan.instances} instances"
    tables.append(Table("arms", title, ("arms", *REGRET_COLUMNS), rows))
    draw_regret(out / "regret.png", {n: (every[n], r) for n, r in results.problems.items()})
    draw_growth(out / "growth.png", results.horizons, results.arms, plan.horizon)
    return tables


def run(request: Request) -> list[Table]:
    """Play everything, draw the figures and return the tables."""
    plan = PLANS[request.size]
    return report(play_all(plan, jr.key(request.seed), request), plan, request.out)


STUDY = Study("varts", "Regret of variance-adaptive Thompson sampling and its rivals", run)
