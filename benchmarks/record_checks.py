"""The checks of `record.py`: each runs one engine on one question and returns a `Cell`."""

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from scipy.stats import norm, t as student

import whence as wh
from whence import testing as wt
from whence.calibration._rank_messages import shape as shape_of
from whence.testing._compare import Estimate, _row, estimate, scalars
from whence.testing._conformance_engine import _Record, _run, _Spy, check_one_trace

# A cell is called wrong with at most this probability if the engine is right: with about a
# hundred cells judged by chance, a flawless page shows a failure in one case of twenty.
LEVEL = 5e-4
MIN_ESS, MAX_RHAT = 100.0, 1.05

# The posteriors that engines other than the default are held to: the cheap ones.
FEW = (
    "arK-arK",
    "eight_schools-eight_schools_noncentered",
    "garch-garch11",
    "kidiq-kidscore_momhsiq",
    "mesquite-logmesquite",
    "sblri-blr",
)

TARGETS = {
    "gaussian": lambda key: wt.Gaussian(5, condition_number=100.0, correlated=True),
    "regression": lambda key: wt.ConjugateRegression.simulate(key=key),
    "skewed": lambda key: wt.LogGamma((1.0, 4.0)),
    # With scale 3 no sampler of one step size reaches the neck; with 1 all do.
    "funnel": lambda key: wt.Funnel(4, scale=1.0),
    "mean": lambda key: wt.GaussianMean.simulate(key=key),
}


class Row(NamedTuple):
    """An engine of the record.

    Attributes:
        name: What the page calls it.
        engine: Configured for moments and posteriordb.
        short: Configured for many small fits: calibration and conformance.
        fixed: A transition for Geweke's test, or why there is none.
        transition: Steps of `fixed` between new data.
        bias: Systematic error of moments to forgive, in true standard deviations, by check
            (`""` for all others): for engines that are approximate by design.
        known: Why a check is bound to fail, by check; found out before, not after.
        remarks: What was found out about a failure afterwards, by check; changes no verdict.
        skip: Why a check does not apply, by check.
        is_weighted: Whether errors come from repeated runs, since those of dependent
            weighted particles cannot be told from one.
        posteriors: Names in posteriordb; None for all that there are.
        settings: Engines for particular posteriors.
    """

    name: str
    engine: wh.AbstractEngine
    short: wh.AbstractEngine
    fixed: wh.AbstractEngine | str
    transition: int = 1
    bias: Mapping[str, float] = {}
    known: Mapping[str, str] = {}
    remarks: Mapping[str, str] = {}
    skip: Mapping[str, str] = {}
    is_weighted: bool = False
    posteriors: tuple[str, ...] | None = FEW
    settings: Mapping[str, wh.AbstractEngine] = {}


class Scale(NamedTuple):
    """How much to do."""

    runs: int
    simulations: int
    replicates: int
    kills: int
    data: Path | None = None


class Cell(NamedTuple):
    """One entry of the page.

    Attributes:
        verdict: `"right"`, `"wrong"`, `"expected"` (wrong as the row says it must be),
            `"none"` (does not apply) or `"error"`.
        text: What the table shows.
        figures: Numbers by name.
        detail: What is wrong, in words.
    """

    verdict: str
    text: str
    figures: dict[str, Any] = {}
    detail: str = ""


def key_of(check: str) -> Any:
    """The key of a check, the same for all engines."""
    return jr.fold_in(jr.key(20261120), zlib.crc32(check.encode()))


def verdict_of(faults: list[str], row: Row, check: str) -> str:
    if not faults:
        return "right"
    return "expected" if check in row.known else "wrong"


def infer(target: Any, engine: Any, key: Any) -> wh.Posterior:
    return wh.infer(target, engine, key=key, progress=False)


# -- moments -----------------------------------------------------------------------


def combined(found: list[Estimate]) -> Estimate:
    """The average of independent runs, with the error that their scatter shows."""
    means, sds = (np.array([getattr(e, n) for e in found]) for n in ("mean", "sd"))
    error = lambda x: float(x.std(ddof=1) / math.sqrt(len(x)))
    ess = float(sum(e.ess for e in found))
    return Estimate(means.mean(), sds.mean(), error(means), error(sds), ess, math.nan)


def normal_score(z: float, runs: int) -> float:
    """The normal quantile of a Student t of so many runs."""
    return float(np.sign(z) * norm.isf(student.sf(abs(z), runs - 1)))


def compare(
    target: Any, engine: Any, reference: Any, key: Any, *, runs: int, bias: float, pick: Any
) -> list[Any]:
    """Run an engine and compare its moments with a reference; one row for each scalar."""
    every = []
    for i in range(runs):
        posterior = infer(target, engine, jr.fold_in(key, i))
        weights = posterior.log_weights
        weights = None if weights is None else np.asarray(weights, np.float64)
        found = {k: v for k, v in pick(posterior).items() if k in reference}
        every.append({k: estimate(v, weights) for k, v in found.items()})
    rows = []
    for name, exact in reference.items():
        found = [one[name] for one in every]
        got = found[0] if runs == 1 else combined(found)
        row = _row(name, got, exact, slack=bias * exact.sd)
        if runs > 1:
            scores = (normal_score(z, runs) for z in (row.z_mean, row.z_sd))
            row = row._replace(**dict(zip(("z_mean", "z_sd"), scores)))
        rows.append(row)
    return rows


def exact_moments(truth: Mapping[str, Any]) -> dict[str, Estimate]:
    means = scalars({k: v[0] for k, v in truth.items()}, batch_ndim=0)
    sds = scalars({k: v[1] for k, v in truth.items()}, batch_ndim=0)
    exact = lambda mean, sd: Estimate(float(mean), float(sd), 0.0, 0.0, math.inf, 1.0)
    return {name: exact(means[name], sds[name]) for name in means}


def limit(comparisons: int) -> float:
    """The largest of so many |z| that chance exceeds with probability `LEVEL` at most."""
    return float(norm.isf(LEVEL / (2 * comparisons)))


def judge(rows: list[Any], faults: list[str]) -> dict[str, Any]:
    """Figures of a comparison; what is wrong is added to `faults`."""
    comparison = wt.Comparison(tuple(rows))
    figures = {
        "moments": 2 * len(rows),
        "max_z": max(comparison.max_z_mean, comparison.max_z_sd),
        "limit": limit(2 * len(rows)),
        "min_ess": comparison.min_ess,
        "max_rhat": comparison.max_rhat,
        # In standard deviations of the truth; what an approximate engine is off.
        "error": max(
            max(abs(r.mean - r.reference_mean), abs(r.sd - r.reference_sd)) / r.reference_sd
            for r in rows
        ),
    }
    for r in rows:
        for what, z, got, want in (
            ("mean", r.z_mean, r.mean, r.reference_mean),
            ("sd", r.z_sd, r.sd, r.reference_sd),
        ):
            if not abs(z) <= figures["limit"]:
                faults.append(f"{r.name}: {what} {got:.4g} should be {want:.4g} (z = {z:.1f})")
    if not figures["min_ess"] >= MIN_ESS:
        name = min(rows, key=lambda r: r.ess).name
        faults.append(f"{name}: effective sample size {figures['min_ess']:.0f}")
    if figures["max_rhat"] > MAX_RHAT:
        faults.append(f"R-hat {figures['max_rhat']:.3f}")
    return figures


def moments(row: Row, check: str, scale: Scale) -> Cell:
    """Means and standard deviations of a target whose moments are known exactly."""
    key_target, key_run = jr.split(key_of(check))
    target = TARGETS[check](key_target)
    bias = row.bias.get(check, row.bias.get("", 0.0))
    faults, reference = list[str](), exact_moments(target.truth)
    rows = compare(
        target,
        row.engine,
        reference,
        key_run,
        runs=scale.runs if row.is_weighted else 1,
        bias=bias,
        pick=lambda posterior: scalars(posterior.variables, batch_ndim=2),
    )
    figures = judge(rows, faults) | {"bias": bias}
    text = f"{figures['max_z']:.1f} of {figures['moments']}; ESS {figures['min_ess']:.0f}"
    if bias or row.known.get(check):
        text += f"; off by {figures['error']:.2f} sd"
    return Cell(verdict_of(faults, row, check), text, figures, "; ".join(faults))


def read(name: str, folder: Path | None) -> tuple[Any, dict[str, Estimate]]:
    """Data and reference moments, shipped or from a folder of reference draws."""
    if folder is None:
        return wt.load_shipped(name)
    with np.load(folder / f"{name}.npz") as file:
        reference = {k: estimate(np.asarray(v, np.float64)) for k, v in file.items()}
    return json.loads((folder / f"{name}.data.json").read_text()), reference


def posteriordb(row: Row, check: str, scale: Scale) -> Cell:
    """Means and standard deviations against posteriordb's reference draws."""
    folder = scale.data if row.posteriors is None else None
    names = row.posteriors or (sorted(wt.ZOO) if folder else wt.shipped())
    bias = row.bias.get(check, row.bias.get("", 0.0))
    rows = []
    for name in names:
        data, reference = read(name, folder)
        problem = wt.ZOO[name].build(data)
        found = compare(
            wh.condition(problem.model, problem.y, *problem.inputs),
            row.settings.get(name, row.engine),
            reference,
            jr.fold_in(key_of(check), zlib.crc32(name.encode())),
            runs=scale.runs if row.is_weighted else 1,
            bias=bias,
            pick=wt.ZOO[name].named_as_in_stan,
        )
        rows += [r._replace(name=f"{name} {r.name}") for r in found]
    faults: list[str] = []
    figures = judge(rows, faults) | {"posteriors": len(names)}
    text = f"{figures['max_z']:.1f} of {figures['moments']}; {len(names)} posteriors"
    if math.isfinite(figures["max_rhat"]):
        text += f"; R-hat {figures['max_rhat']:.3f}"
    if bias:
        text += f"; off by {figures['error']:.2f} sd"
    return Cell(verdict_of(faults, row, check), text, figures, "; ".join(faults))


def evidence(row: Row, check: str, scale: Scale) -> Cell:
    """Log evidence, in the standard errors that the engine states, over several runs."""
    z = []
    for name in ("gaussian", "mean", "regression"):
        key_target, key_run = jr.split(key_of(f"{check} {name}"))
        target = TARGETS[name](key_target)
        if name == "gaussian" and row.skip.get(name):
            continue
        truth = float(getattr(target, "log_evidence", 0.0))  # others are normalised
        for i in range(scale.runs):
            posterior = infer(target, row.engine, jr.fold_in(key_run, i))
            error = posterior.log_evidence_error or math.nan
            z.append(((posterior.log_evidence or 0.0) - truth) / error)
    worst, rms = float(np.max(np.abs(z))), float(np.sqrt(np.mean(np.square(z))))
    faults = [] if worst <= limit(len(z)) else [f"z = {worst:.1f}"]
    figures = {"runs": len(z), "max_z": worst, "rms_z": rms, "mean_z": float(np.mean(z))}
    text = f"{worst:.1f} of {len(z)}; root mean square {rms:.2f}"
    return Cell(verdict_of(faults, row, check), text, figures, "; ".join(faults))


# -- calibration -------------------------------------------------------------------


class Schools(wh.Model):
    """Eight groups, non-centred, in units of the spread of their effects."""

    mu: Any = wh.latent(dist.Normal(0.0, 1.0))
    tau: Any = wh.latent(dist.HalfNormal(1.0))
    theta: Any = wh.latent(lambda m: dist.Normal(m.mu, m.tau), shape=(8,), noncentered=True)

    def likelihood(self, sigma: Any) -> dist.Distribution:
        """One estimate a group, with its standard error."""
        return dist.Normal(self.theta, sigma)


def schools() -> wh.ModelTarget:
    return wh.condition(Schools(), jnp.zeros(8), jnp.linspace(0.4, 1.1, 8))


def words(p: float) -> str:
    return "p < 1e-10" if p < 1e-10 else f"p = {p:.2g}"


def smallest(result: Any) -> tuple[float, str]:
    """The smallest p-value, corrected for the number of quantities, and whose it is."""
    least = {name: float(np.min(p)) for name, p in result.p_values.items()}
    name = min(least, key=lambda n: least[n])
    return min(1.0, least[name] * result.num_quantities), name


def sbc(row: Row, check: str, scale: Scale) -> Cell:
    """Simulation-based calibration."""
    result = wh.sbc(
        schools(), row.short, key=key_of(check), simulations=scale.simulations, alpha=LEVEL
    )
    p, name = smallest(result)
    faults = []
    if p <= LEVEL:
        flat = result.ranks[name].reshape(len(result.ranks[name]), -1)
        worst = flat[:, int(np.argmin(result.p_values[name]))]
        faults.append(f"{name}: posterior too {shape_of(worst, result.num_draws)} ({words(p)})")
    if result.failures:
        faults.append(f"{len(result.failures)} fits failed")
    figures = {
        "p": p,
        "quantities": result.num_quantities,
        "simulations": result.num_simulations,
        "draws": result.num_draws,
        "failures": len(result.failures),
        "divergent": result.divergent,
        "fits_with_fewer_effective_draws": int(np.sum(result.ess < result.num_draws)),
    }
    text = f"{words(p)}, ranks among {result.num_draws}"
    return Cell(verdict_of(faults, row, check), text, figures, "; ".join(faults))


def geweke(row: Row, check: str, scale: Scale) -> Cell:
    """Geweke's joint distribution test of one transition."""
    if isinstance(row.fixed, str):
        return Cell("none", "", detail=row.fixed)
    result = wh.geweke(
        schools(),
        row.fixed,
        key=key_of(check),
        replicates=scale.replicates,
        steps=row.transition,
        alpha=LEVEL,
    )
    p, name = smallest(result)
    if result.failures or not result.moved > 0.5:
        why = f"{result.failures} replicates failed, {result.moved:.0%} moved"
        return Cell("wrong", words(p), {"p": p}, why)
    faults = [f"{name} leaves its distribution ({words(p)})"] if p <= LEVEL else []
    figures = {"p": p, "quantities": result.num_quantities, "moved": result.moved}
    figures |= {"replicates": result.num_replicates, "iterations": result.iterations}
    return Cell(verdict_of(faults, row, check), words(p), figures, "; ".join(faults))


# -- conformance -------------------------------------------------------------------


def resumes(row: Row, check: str, scale: Scale) -> Cell:
    """Runs cut, stopped and resumed, or extended give the same draws to the last bit."""
    key_target, key_run = jr.split(key_of(check))
    target, pieces = TARGETS["regression"](key_target), ("chunks", "resume", "until")
    try:
        wt.check_engine(row.short, target, key=key_run, only=pieces)
    except AssertionError as error:
        return Cell("wrong", "no", detail=str(error))
    return Cell("right", "yes")


def compiles_once(row: Row, check: str, scale: Scale) -> Cell:
    """A second fit, to other data of the same shapes, traces nothing."""
    key_target, key_run = jr.split(key_of(check))
    target, spy = TARGETS["regression"](key_target), _Spy(row.short, _Record())
    _run(target, spy, key=key_run)
    first = spy.record.traces
    try:
        check_one_trace(spy, target, key=key_run)
    except AssertionError as error:
        return Cell("wrong", "no", {"traces_first": first}, str(error))
    return Cell("right", "yes", {"traces_first": first, "traces_second": 0})


CHECKS = {
    "gaussian": moments,
    "regression": moments,
    "skewed": moments,
    "funnel": moments,
    "posteriordb": posteriordb,
    "evidence": evidence,
    "sbc": sbc,
    "geweke": geweke,
    "resume": resumes,
    "compile": compiles_once,
}
