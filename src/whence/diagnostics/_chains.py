"""Checks that every Markov chain must pass: has it mixed, and long enough?"""

import numpy as np

from ._convergence import convergence
from ._data import Draws
from ._modes import check_modes
from ._names import beyond, listing, plural
from ._report import Finding
from ._stuck import check_stuck

RHAT_LIMIT = 1.01
RHAT_SEVERE = 1.1  # the older limit of Gelman et al. (2013): beyond it nobody calls it mixed
ESS_PER_CHAIN = 100
FEW_DRAWS = 100
_VEHTARI = "Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, doi:10.1214/20-BA1221"


def check_chains(draws: Draws) -> tuple[list[Finding], dict[str, float]]:
    """Check number, movement, agreement and effective size of Markov chains."""
    names, statistics = _all_statistics(draws)
    rhat, bulk, tail = statistics
    findings, stuck = check_stuck(draws)
    findings += _numbers_of_draws(draws)
    numbers = {
        "max_rhat": _extreme(np.nanmax, rhat),
        "min_ess_bulk": _extreme(np.nanmin, bulk),
        "min_ess_tail": _extreme(np.nanmin, tail),
    }
    if np.isnan(rhat).all():
        return [*findings, _not_available(draws)], numbers
    mixed = bool(numbers["max_rhat"] <= RHAT_SEVERE)
    if not numbers["max_rhat"] <= RHAT_LIMIT:
        findings += check_modes(draws, stuck)
    findings.append(_rhat(draws, names, rhat))
    findings.append(_ess("ess_bulk", "bulk", draws, names, bulk, mixed))
    findings.append(_ess("ess_tail", "tails", draws, names, tail, mixed))
    # With a non-finite draw the extremes are unknown, not what the finite elements have.
    if _has_nonfinite(draws):
        numbers |= {"max_rhat": np.nan, "min_ess_bulk": np.nan, "min_ess_tail": np.nan}
    return findings, numbers


def _all_statistics(draws: Draws) -> tuple[list[tuple[str, tuple[int, ...], int]], np.ndarray]:
    labels, parts = [], []
    for name, shape, values in draws.elements():
        if values.dtype.kind not in "fiub":
            continue
        parts.append(np.stack(convergence(values)))
        labels += [(name, shape, index) for index in range(values.shape[2])]
    return labels, np.concatenate(parts, axis=1) if parts else np.full((3, 1), np.nan)


def _extreme(reduce, values: np.ndarray) -> float:
    return float(reduce(values)) if not np.isnan(values).all() else float("nan")


def _has_nonfinite(draws: Draws) -> bool:
    return any(
        values.dtype.kind in "fc" and not np.isfinite(values).all()
        for values in draws.variables.values()
    )


def _worst(draws: Draws, labels, values: np.ndarray, is_bad: np.ndarray) -> tuple[str, ...]:
    """Name the bad elements; `values` larger is worse."""
    indices = np.flatnonzero(is_bad)
    order = indices[np.argsort(-values[indices], kind="stable")]
    return tuple(draws.name(*labels[i]) for i in order)


def _numbers_of_draws(draws: Draws) -> list[Finding]:
    findings = []
    if draws.num_chains == 1:
        findings.append(
            Finding(
                "one_chain",
                "warning",
                "One chain only, so R-hat across chains is not available; it compares the two "
                "halves of this chain and cannot see what the chain has not visited",
                value=1.0,
                threshold=4.0,
                source=_VEHTARI,
                remedy="Run at least four chains from dispersed starts.",
            )
        )
    if draws.num_draws < FEW_DRAWS:
        findings.append(
            Finding(
                "few_draws",
                "warning",
                f"{plural(draws.num_draws, 'draw')} per chain: too few to judge convergence",
                value=float(draws.num_draws),
                threshold=float(FEW_DRAWS),
                source="as many draws as the effective draws asked for",
                remedy="Draw more, 1000 per chain as a start.",
            )
        )
    return findings


def _not_available(draws: Draws) -> Finding:
    why = (
        "fewer than 4 draws per chain" if draws.num_draws < 4 else "no finite, varying variable"
    )
    return Finding(
        "rhat",
        "error",
        f"R-hat and effective sample sizes are not available: {why}",
        value=float("nan"),
        threshold=RHAT_LIMIT,
        source=_VEHTARI,
        remedy="Draw more; or mend what the other findings name.",
    )


def _rhat(draws: Draws, labels, values: np.ndarray) -> Finding:
    top = float(np.nanmax(values))
    across = "across chains" if draws.num_chains > 1 else "between halves of the chain"
    if top <= RHAT_LIMIT:
        finite = ", of the elements that are finite" if _has_nonfinite(draws) else ""
        message = f"R-hat {across} is at most {top:.4f}{finite}"
        return Finding("rhat", "ok", message, top, RHAT_LIMIT, _VEHTARI)
    where = _worst(draws, labels, values, values > RHAT_LIMIT)
    return Finding(
        "rhat",
        "error" if top > RHAT_SEVERE else "warning",
        f"R-hat {across} is up to {beyond(top, RHAT_LIMIT)} and above the limit for "
        f"{plural(len(where), 'element')}: {listing(where)}",
        value=top,
        threshold=RHAT_LIMIT,
        source=_VEHTARI,
        remedy="The chains have not mixed. Run longer, with more warmup; if that does not "
        "help, reparameterise (noncentered=True for hierarchical effects) or check whether "
        "the posterior has several modes or parameters that the data do not identify.",
        where=where,
    )


def _ess(
    code: str, part: str, draws: Draws, labels, values: np.ndarray, mixed: bool
) -> Finding:
    # The rule is for a few long chains; with many short ones 400 in all serve as well.
    limit = float(ESS_PER_CHAIN * min(draws.num_chains, 4))
    low = float(np.nanmin(values))
    if low >= limit:
        message = f"At least {low:.0f} effective draws in the {part}"
        return Finding(code, "ok", message, low, limit, _VEHTARI)
    where = _worst(draws, labels, -values, values < limit)
    what = "means and medians" if part == "bulk" else "intervals and tail probabilities"
    factor = np.ceil(limit / max(low, 1))
    remedy = (
        f"Estimates of {what} are noisy: draw {factor:.0f} times as many, or reparameterise."
    )
    if not mixed:
        remedy = "The chains do not agree, so this number is a guess: see R-hat first."
    message = (
        f"Only {low:.0f} effective draws in the {part} ({limit:.0f} are needed), "
        f"for {plural(len(where), 'element')}: {listing(where)}"
    )
    return Finding(code, "warning", message, low, limit, _VEHTARI, remedy, where)
