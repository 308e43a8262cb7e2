"""The page of the record: from the JSON that `record.py` writes to `docs/record.md`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record_checks import FEW, LEVEL, MAX_RHAT, MIN_ESS, limit

Results = dict[str, Any]

TABLES = {
    "moments": ("gaussian", "regression", "skewed", "funnel", "posteriordb"),
    "calibration": ("sbc", "geweke", "evidence"),
    "conformance": ("resume", "compile"),
}
TITLES = {
    "gaussian": "Gaussian",
    "regression": "regression",
    "skewed": "skewed",
    "funnel": "funnel",
    "posteriordb": "posteriordb",
    "sbc": "simulation-based calibration",
    "geweke": "Geweke's test",
    "evidence": "log evidence",
    "resume": "resumes bit for bit",
    "compile": "compiles once",
}

MISSING = {"verdict": "none", "text": "", "detail": "not measured yet", "figures": {}}

INTRODUCTION = """# Record of correctness

What each engine was found to do where the truth is known, with figures. It is a record: a
cell that fails is shown and stays until it is mended. The page is written by

```
python benchmarks/record.py --data DIR
```

which measures everything with keys that were chosen before looking; `DIR`, if given, holds
the reference draws of posteriordb.
"""

RULES = """
## How a cell is judged

Where chance decides, a page of a hundred cells needs a stricter rule than one test: a cell
*fails* if what it shows had a probability of at most {level:g} for a right engine, all
comparisons in the cell together (Bonferroni). Were all engines right and all errors normal,
a page of a hundred cells would show a failure in one case of twenty. For the largest of
10 |z| the limit is {ten:.1f}, of 100 {hundred:.1f}. A moment also fails with an effective
sample size (ESS) below {ess:g} or R-hat above {rhat:g}.

*As expected* marks failures of engines that are approximate by design, in cells where that
was said beforehand; no figure is called right on that ground.
"""

MOMENTS = """
## Moments

Largest |z| of how many means and standard deviations: differences from the truth in Monte
Carlo standard errors; and the smallest effective sample size. Targets: a correlated Gaussian
(5 dimensions, condition number 100); a conjugate linear regression with unknown noise; the
logarithms of two Gamma variables; Neal's funnel in 5 dimensions with scale 1. All these are
known exactly. posteriordb: against reference draws, the errors of both sides combined;
{posteriordb} `TemperedSMC`, whose particles depend on one another: averages of {repeats}
runs, with the errors that their scatter shows.

Where "off by" is said, the engine is approximate and a systematic error is forgiven before
z is taken; the figure is the largest error that was found, in standard deviations of the
truth.
"""

CALIBRATION = """
## Calibration and evidence

The smallest p-value of all quantities, corrected for their number: {quantities} quantities of
a hierarchical model of eight groups (`mu`, `tau`, eight `theta`, the joint likelihood).
[Simulation-based calibration](calibration.md): {simulations} fits to data simulated from the
model; a small p says that posteriors are too narrow, too wide or off. Geweke's test:
{replicates} replicates of {iterations} transitions, each followed by new data. Log evidence:
errors in the standard errors that the engine itself states, in {runs} runs on three targets;
largest |z| and root mean square, which is 1 if the stated error is right.
"""

CONFORMANCE = """
## Contract

Measured, not promised. *Resumes bit for bit*: the same draws from a run in one piece, one in
other chunks, one stopped half way and resumed from its store, and a shorter one cut by a
stopping rule. *Compiles once*: a second fit to other data of the same shapes traces nothing.
"""

LIMITS = """
## Known limits

- **Several modes.** Chains do not move between modes that are far apart, and those of
  `ChEES`, which share what they learn, can be stuck while averages look well; R-hat over the
  many chains shows it. `TemperedSMC` represents the modes that its first particles found. No
  exact target of this page has several modes.
- **Funnels.** Neal's funnel with scale 3 is beyond every sampler here that has one step size
  for all places; the table's has scale 1. A test of the suite holds that `NUTS` is seen to
  fail there.
- **Unadjusted samplers.** `SGLD` and `MCLMC(adjusted=False)` are biased by an amount that the
  step size rules, and no R-hat shows it. A row of this page holds for its step size only:
  run again with half of it.
- **Variational inference.** `BBVI` is as good as its family. Mean field is too narrow where
  latents correlate; a full-rank Gaussian is wrong where the posterior is none. Pareto k-hat
  in `diagnose` tells.
- **Evidence.** The estimate of `TemperedSMC` is biased by a part of order one over the number
  of particles, since temperatures and moves adapt to the particles. The table has 2048; with
  few the bias can exceed the stated error.
- **What these tests cannot see.** Errors much smaller than the Monte Carlo error of the run,
  and errors of a model that the simulator shares.
"""


def page(results: Results, rows: list[Any]) -> str:
    """Return the page as Markdown.

    Args:
        results: What `record.py` keeps.
        rows: Its engines, in the order of the tables.
    """
    first = next(iter(results["cells"].values()))
    scale = results["scale"]
    few = ", ".join(f"`{name}`" for name in FEW)
    default = first.get("posteriordb", MISSING)["figures"].get("posteriors", 0)
    numbers = {
        "level": LEVEL,
        "ten": limit(10),
        "hundred": limit(100),
        "ess": MIN_ESS,
        "rhat": MAX_RHAT,
        "quantities": first.get("sbc", MISSING)["figures"].get("quantities", "?"),
        "simulations": scale["simulations"],
        "replicates": scale["replicates"],
        "iterations": first.get("geweke", MISSING)["figures"].get("iterations", "?"),
        "runs": 3 * scale["runs"],
        "repeats": scale["runs"],
        "posteriordb": f"{default} posteriors for the default engine, for the others {few}.",
    }
    parts = [INTRODUCTION, verdict(results), measured(results), RULES.format(**numbers)]
    heads = {"moments": MOMENTS, "calibration": CALIBRATION, "conformance": CONFORMANCE}
    for name, checks in TABLES.items():
        parts += [heads[name].format(**numbers), table(results, rows, checks)]
        parts.append(reasons(results, rows, checks))
    parts += [processes(results), failures(results, rows), LIMITS, configurations(rows)]
    return "\n".join(part.strip("\n") + "\n" for part in parts if part)


def cells_of(results: Results) -> list[tuple[str, str, Results]]:
    found = [(r, c, cell) for r, row in results["cells"].items() for c, cell in row.items()]
    return found + [("", name, cell) for name, cell in results["alone"].items()]


def verdict(results: Results) -> str:
    """One paragraph that counts."""
    cells = [cell["verdict"] for _, _, cell in cells_of(results)]
    judged = [v for v in cells if v != "none"]
    wrong = sum(v in ("wrong", "error") for v in judged)
    expected = judged.count("expected")
    return (
        f"**Of {len(judged)} cells {judged.count('right')} are right, {wrong} "
        f"{'fails' if wrong == 1 else 'fail'}, and {expected} fail as expected of an "
        "approximate engine.**"
    )


def measured(results: Results) -> str:
    """When, where and with what."""
    m, cells = results["machine"], cells_of(results)
    dates = sorted(cell["date"][:10] for _, _, cell in cells)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    versions = ", ".join(f"{name} {v}" for name, v in m["versions"].items())
    # By the date of their first cell.
    commits = dict.fromkeys(c["commit"] for *_, c in sorted(cells, key=lambda x: x[2]["date"]))
    minutes = sum(cell["seconds"] for _, _, cell in cells) / 60
    return (
        f"Measured on {when} on {m['cores']} cores of {m['cpu']} ({m['system']}), float64, in "
        f"{minutes:.0f} minutes of CPU time; Python {m['python']}, {versions}; commits "
        f"{', '.join(f'`{c}`' for c in commits)}."
    )


def table(results: Results, rows: list[Any], checks: tuple[str, ...]) -> str:
    lines = ["| engine | " + " | ".join(TITLES[c] for c in checks) + " |"]
    lines.append("| --- |" + " --- |" * len(checks))
    for row in rows:
        mine = results["cells"].get(row.name, {})
        lines.append(
            f"| {row.name} | " + " | ".join(shown(mine.get(c, MISSING)) for c in checks) + " |"
        )
    return "\n".join(lines)


def shown(cell: Results) -> str:
    if cell["verdict"] == "none":
        return "–"
    if cell["verdict"] in ("wrong", "error"):
        return f"**fails:** {cell['text']}"
    if cell["verdict"] == "expected":
        return f"*as expected:* {cell['text']}"
    return cell["text"]


def reasons(results: Results, rows: list[Any], checks: tuple[str, ...]) -> str:
    """Why cells of a table are empty."""
    found: dict[tuple[str, str], list[str]] = {}
    for check in checks:
        for row in rows:
            cell = results["cells"].get(row.name, {}).get(check, MISSING)
            if cell["verdict"] == "none":
                found.setdefault((check, cell["detail"]), []).append(row.name)
    if not found:
        return ""
    lines = [
        f"- {TITLES[check][0].upper() + TITLES[check][1:]}, {'; '.join(names)}: {why}."
        for (check, why), names in found.items()
    ]
    return "Empty cells:\n\n" + "\n".join(lines)


def processes(results: Results) -> str:
    """What was measured in processes of their own."""
    alone = results["alone"]
    parts = []
    kill = alone.get("sigkill")
    if kill:
        figures = kill["figures"]
        end = "all equal to the last bit" if kill["verdict"] == "right" else "**which failed**"
        parts.append(
            "## Killed processes\n\n"
            f"Runs of {figures['engines']} engines (`NUTS`, `SGLD`, `TemperedSMC`), in "
            f"processes killed with SIGKILL at {figures['kills']} random moments, then "
            f"completed and compared with runs that were left alone: {end}.\n"
        )
    planted = alone.get("mutations")
    if planted and planted["verdict"] != "none":
        parts.append(bugs(planted))
    parts += [mutations(kept("mutations")), slow_tests(kept("slow"))]
    return "\n".join(parts)


def kept(name: str) -> Any:
    """What another script left in `results`, or nothing."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def mutations(found: list[Results] | None) -> str:
    """How many lines could be broken unnoticed, by room."""
    if not found:
        return ""
    rooms: dict[str, list[Results]] = {}
    for one in found:
        rooms.setdefault("/".join(one["file"].split("/")[2:-1]), []).append(one)
    count = lambda some: sum(one["outcome"] == "killed" for one in some)
    lines = [
        "## Broken lines\n",
        f"`benchmarks/mutations.py` breaks one line of `src` at a time, where a wrong number "
        f"would come out: the default suite notices {count(found)} of {len(found)}.\n",
        "| room | broken | noticed |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {room} | {len(some)} | {count(some)} |" for room, some in sorted(rooms.items())
    ]
    unnoticed = [one for one in found if one["outcome"] != "killed"]
    lines += ["\nNot noticed:\n"] if unnoticed else []
    lines += [f"- `{one['file']}`: `{one['old']}` as `{one['new']}`" for one in unnoticed]
    return "\n".join(lines) + "\n"


def slow_tests(dates: dict[str, Results | None] | None) -> str:
    """When the slow tests of each file last passed."""
    if not dates:
        return ""
    files: dict[str, list[Results | None]] = {}
    for test, when in dates.items():
        files.setdefault(test.split("::")[0], []).append(when)
    lines = [
        "## Slow tests\n",
        "The default suite leaves out tests that take minutes; an eighth of them runs with "
        "every change (`.ci/run`), as far as there is time. When each last passed, with its "
        "seconds, is kept by `pytest -m slow --dates benchmarks/results/slow.json`; by file:\n",
        "| file | tests | never passed here | longest ago | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for file, some in sorted(files.items()):
        passed = [when for when in some if when is not None]
        oldest = min((when["date"] for when in passed), default="–")
        seconds = sum(when["seconds"] for when in passed)
        lines.append(
            f"| `{file}` | {len(some)} | {len(some) - len(passed)} | {oldest} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def bugs(cell: Results) -> str:
    """Which planted bugs are caught."""
    found = cell["figures"].get("bugs", {})
    says = lambda is_right: "yes" if is_right else "**no**"
    lines = [
        "## Planted bugs\n",
        "Would the checks notice if something were wrong? Bugs that libraries had or that "
        "are easily made (folklore), planted one at a time in small engines and models. Each "
        "must be caught by a check of the package, and the same engine or model without the "
        "bug must pass: "
        f"{cell['figures'].get('caught', 0)} of {len(found)} do both "
        "(`tests/testing/test_mutations.py`, slow ones included).\n",
        "| bug | seen in | caught | right version passes |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {bug} | {f['source']} | {says(f['caught'])} | {says(f['passes'])} |"
        for bug, f in found.items()
    ]
    return "\n".join(lines) + "\n"


def failures(results: Results, rows: list[Any]) -> str:
    """Every failed cell in words."""
    remarks = {(row.name, check): text for row in rows for check, text in row.remarks.items()}
    lines = []
    for row, check, cell in cells_of(results):
        if cell["verdict"] in ("wrong", "error", "expected"):
            how = "as expected" if cell["verdict"] == "expected" else "fails"
            where = f"{row}, {TITLES.get(check, check)}" if row else check
            remark = f" {remarks[row, check]}" if (row, check) in remarks else ""
            lines.append(f"- {where} ({how}): {shortened(cell['detail'])}.{remark}")
    return "## Failures in words\n\n" + "\n".join(lines) if lines else ""


def shortened(text: str, most: int = 3) -> str:
    parts = text.replace("\n", " ").split("; ")
    more = f"; and {len(parts) - most} more" if len(parts) > most else ""
    return "; ".join(parts[:most]) + more


def configurations(rows: list[Any]) -> str:
    """How every engine was set."""
    lines = [
        "## Settings\n",
        "All else is the default. Small: for calibration and contract; fixed: for Geweke.\n",
        "| engine | moments, evidence | small | fixed |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        fixed = "–" if isinstance(row.fixed, str) else f"`{settings(row.fixed)}`"
        engines = f"`{settings(row.engine)}` | `{settings(row.short)}`"
        lines.append(f"| {row.name} | {engines} | {fixed} |")
    special = {k: v for row in rows for k, v in row.settings.items()}
    lines += [
        f"\nIn posteriordb, {n} is fitted with `{settings(e)}`." for n, e in special.items()
    ]
    return "\n".join(lines)


def settings(thing: Any) -> str:
    """An engine as the call that makes it, without defaults."""
    if isinstance(thing, Mapping):
        return str({name: settings(value) for name, value in thing.items()})
    if not dataclasses.is_dataclass(thing):
        return repr(thing)
    given = {
        f.name: getattr(thing, f.name)
        for f in dataclasses.fields(thing)
        if f.init and getattr(thing, f.name) != f.default
    }
    inside = ", ".join(f"{name}={settings(value)}" for name, value in given.items())
    return f"{type(thing).__name__}({inside})"
