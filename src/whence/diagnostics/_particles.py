"""Checks of weighted particles and of the path that led to them."""

from typing import Any

import numpy as np

from ._data import Draws
from ._report import Finding, held
from ._weights import judged_khat, khat_limit, normalise, weight_ess

WEIGHT_ESS_LIMIT = 100.0
LARGEST_WEIGHT = 0.05
STAGE_ESS = 0.01
LOW_ACCEPTANCE = 0.1
MOST_GROWTH = 1 / 3  # of a variance, by moves that should leave it as it is
_PSIS = "Vehtari, Simpson, Gelman, Yao and Gabry 2024, JMLR 25(72), arXiv:1507.02646"
_KONG = "Kong, Liu and Wong 1994, doi:10.1080/01621459.1994.10476469; rule of thumb"


def check_weights(
    log_weights: np.ndarray, noun: str = "particle"
) -> tuple[list[Finding], dict[str, float]]:
    """Check that no few particles (or draws) carry all the weight."""
    weights = normalise(log_weights)
    size = len(weights)
    if np.isnan(weights).any():
        finding = Finding(
            "weights",
            "error",
            "Log weights are NaN or infinite, or all weights are zero",
            value=float("nan"),
            remedy="Look for a non-finite log likelihood; check the target.",
        )
        return [finding], {"weight_ess": np.nan, "max_weight": np.nan, "khat": np.nan}
    ess, largest, khat = weight_ess(log_weights), float(weights.max()), judged_khat(log_weights)
    findings = [_ess(ess, size, noun), _largest(largest, size, noun)]
    if not np.isneginf(khat):
        findings.append(check_khat(khat, size, f"the {noun}s' weights", _SMC_REMEDY))
    return findings, {"weight_ess": ess, "max_weight": largest, "khat": khat}


_SMC_REMEDY = (
    "Use more particles, or more temperatures and moves between them; of weighted draws, more "
    "of them, or a law nearer to the target."
)


def _ess(ess: float, size: int, noun: str) -> Finding:
    return held(
        "weight_ess",
        ess,
        WEIGHT_ESS_LIMIT,
        fine=f"{ess:.0f} effective of {size} {noun}s",
        wrong=f"Only {ess:.1f} effective of {size} {noun}s",
        remedy=_SMC_REMEDY,
        source=_KONG,
    )


def _largest(largest: float, size: int, noun: str) -> Finding:
    limit = max(LARGEST_WEIGHT, 2 / size)
    return held(
        "max_weight",
        largest,
        limit,
        passed=largest <= limit,
        fine=f"The largest weight is {largest:.2%} of all",
        wrong=f"A single {noun} carries {largest:.1%} of the weight",
        remedy=_SMC_REMEDY,
    )


def check_khat(khat: float, size: int, what: str, remedy: str) -> Finding:
    """Judge a Pareto k-hat."""
    limit = khat_limit(size)
    if np.isnan(khat):
        message = (
            f"The Pareto k-hat of {what} is not available: at least 25 finite ones are needed"
        )
        return Finding("khat", "warning", message, khat, limit, _PSIS, "Draw more.")
    if khat <= 0.5:
        message = f"The Pareto k-hat of {what} is {khat:.2f}"
        return Finding("khat", "ok", message, khat, limit, _PSIS)
    if khat <= limit:
        message = (
            f"The Pareto k-hat of {what} is {khat:.2f}: the weights' variance is infinite, and "
            "estimates converge slowly"
        )
        return Finding("khat", "note", message, khat, limit, _PSIS, remedy)
    message = (
        f"The Pareto k-hat of {what} is {khat:.2f}: a few weights dominate, and neither they "
        "nor the effective sample size can be trusted"
    )
    return Finding("khat", "warning", message, khat, limit, _PSIS, remedy)


def check_smc(
    temperature: Any, ess: Any, acceptance_rate: Any, draws: Draws
) -> tuple[list[Finding], dict[str, float]]:
    """Check the particles and the path of a sequential Monte Carlo run."""
    temperature, ess, rate = (_flat(x) for x in (temperature, ess, acceptance_rate))
    size = draws.num_chains * draws.num_draws
    distinct = len({row.tobytes() for row in draws.positions.reshape(size, -1)})
    findings, numbers = [_distinct(distinct, size)], {"distinct_particles": float(distinct)}
    if temperature.size:
        findings.append(_temperature(temperature))
        numbers["temperature"] = float(temperature[-1])
        numbers["num_stages"] = float(len(temperature))
    if ess.size:
        findings.append(_stages(ess, size))
        numbers["min_stage_ess"] = float(ess.min())
    if rate.size:
        findings.append(_moves(rate))
        numbers["min_acceptance_rate"] = float(rate.min())
    return findings, numbers


def check_clipped(clipped: Any) -> list[Finding]:
    """Say so if increments of weights were clipped: the law is another then."""
    share = _flat(clipped)
    if not share.size or not share.any():
        return []
    message = f"{share.mean():.2%} of the increments of log weights were clipped"
    remedy = (
        "Weights and evidence are biased. Leave `clip` out, and use more steps or particles."
    )
    return [Finding("clipped", "warning", message, float(share.mean()), 0.0, remedy=remedy)]


def check_spreading(growth: Any) -> list[Finding]:
    """Judge whether moves had to spread the particles, which weights should have done."""
    growth = _flat(growth)
    if not growth.size:
        return []
    most = float(growth.max())
    fine = f"Moves at one stage made the mean variance of the particles {most:.0%} larger"
    finding = held(
        "spreading",
        most,
        MOST_GROWTH,
        passed=most <= MOST_GROWTH,
        fine=fine,
        wrong=f"{fine}: the particles before had not reached where the law of that stage has "
        "its mass, the moves may not have either, and the evidence lacks it",
        remedy="Standard deviations may be too small. Reparameterise (`noncentered=True` for a "
        "funnel), begin wider (`path=ReferencePath(scale=...)`), or compare with NUTS.",
        source="rule of thumb: 15% of a standard deviation, beyond 3 standard errors",
    )
    return [finding]


def _flat(values: Any) -> np.ndarray:
    return np.zeros(0) if values is None else np.ravel(np.asarray(values, np.float64))


def _distinct(distinct: int, size: int) -> Finding:
    """Judge copies: resampling makes them, and equal weights do not show them."""
    return held(
        "distinct",
        float(distinct),
        WEIGHT_ESS_LIMIT,
        fine=f"{distinct} of {size} particles are distinct",
        wrong=f"Only {distinct} of {size} particles are distinct",
        remedy="The moves after resampling were rejected, or there are too few particles: use "
        "smaller or more moves per stage, or more particles.",
    )


def _temperature(temperature: np.ndarray) -> Finding:
    last = float(temperature[-1])
    if last >= 1 - 1e-6:
        message = f"The posterior was reached in {len(temperature)} stages"
        return Finding("temperature", "ok", message, last, 1.0)
    return Finding(
        "temperature",
        "error",
        f"The particles stopped at inverse temperature {last:.4g}, before the posterior at 1",
        value=last,
        threshold=1.0,
        remedy="These are draws from a tempered distribution. Allow more stages; if the "
        "temperature hardly grew, use more particles or more moves per stage.",
    )


def _stages(ess: np.ndarray, size: int) -> Finding:
    limit, low = STAGE_ESS * size, float(ess.min())
    return held(
        "stage_ess",
        low,
        limit,
        fine=f"At least {low:.0f} effective of {size} particles at every stage",
        wrong=f"Only {low:.1f} effective of {size} particles at stage {int(np.argmin(ess))}",
        remedy="The step between two stages was too large: use more stages, or choose them "
        "adaptively.",
    )


def _moves(rate: np.ndarray) -> Finding:
    low = float(rate.min())
    return held(
        "acceptance",
        low,
        LOW_ACCEPTANCE,
        fine=f"The acceptance rate of the moves is at least {low:.2f}",
        wrong=f"The acceptance rate of the moves falls to {low:.3f} at stage "
        f"{int(np.argmin(rate))}: particles stay copies of each other",
        remedy="Use smaller or more moves per stage.",
    )
