"""`diagnose`: all checks that apply to what an engine returned."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._chains import check_chains
from ._data import Draws
from ._hamiltonian import check_hamiltonian
from ._particles import check_smc, check_weights
from ._point import check_point
from ._report import Finding, Report, make_report
from ._values import check_values
from ._variational import check_variational

METHODS = ("mcmc", "unadjusted", "variational", "smc", "exact", "point")
_UNADJUSTED = re.compile(r"SG[A-Z]*(LD|HMC|NHT|MCMC)|\bULA\b|Unadjusted")
_EXACT = re.compile(r"Exact|Conjugate")


def diagnose(
    variables: Mapping[str, Any],
    stats: Mapping[str, Any] | None = None,
    *,
    engine: str = "MCMC",
    method: str | None = None,
    unconstrained: Mapping[str, Any] | np.ndarray | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    log_weights: Any = None,
    log_weights_is: Any = None,
    elbo: Any = None,
    smc: Mapping[str, Any] | None = None,
    point: Mapping[str, Any] | None = None,
    max_tree_depth: int | None = None,
    target_acceptance: float | None = None,
    failed: Sequence[object] = (),
    incomplete: bool = False,
) -> Report:
    """Judge draws by everything that is known about them.

    The limits are those of the literature, named in each finding. Held against perfectly
    mixed chains, R-hat's 1.01 is the one that can be passed by chance: for four chains with
    an ESS of 2000 practically never, with an ESS of 1000 in 2 to 7 of 1000 elements.

    Args:
        variables: Latents and derived values by name, each `(chain, draw, ...)`.
        stats: Sample statistics by ArviZ's names, each `(chain, draw)`; read are
            `diverging`, `energy`, `tree_depth`, `reached_max_treedepth`,
            `acceptance_rate`, `step_size`, `n_steps` and `lp`.
        engine: Name of the engine, for the title and to infer `method`.
        method: `"mcmc"`; `"unadjusted"` (a Markov chain without a Metropolis step, such
            as SGLD); `"variational"` (independent draws from a fitted family); `"smc"`
            (weighted particles); `"exact"` (independent draws from the posterior);
            `"point"` (a maximum, without uncertainty). None infers it: `"smc"` if
            `log_weights` or a temperature is given, `"variational"` if `elbo` or
            `log_weights_is` is, `"unadjusted"` or `"exact"` by the name of the engine,
            `"mcmc"` otherwise.
        unconstrained: Positions on the unconstrained space, `(chain, draw, ...)` by name
            or one array; used to say where divergences lie and whether chains move.
        dims: Names of the axes of a variable, by variable, without chain and draw.
        coords: Labels along named axes, to name elements: `theta[Choate]`.
        log_weights: Log weights of the draws in nats, `(chain, draw)`; None if equal.
        log_weights_is: Log importance ratios (target over approximation) in nats, any
            shape, at independent draws of a variational family.
        elbo: Evidence lower bound by step in nats, `(step,)` or `(replica, step)`; larger
            is better.
        smc: History by stage, arrays `(stage,)`, of any of `temperature`, `ess` (number
            of effective particles before resampling) and `acceptance_rate`.
        point: Of a maximum: `objectives` and `converged` by start, best first, and the
            shape of the objective there; see `check_point`.
        max_tree_depth: Limit of NUTS, if `stats` has no `reached_max_treedepth`.
        target_acceptance: Acceptance rate the step size was adapted to, the highest of all
            chains.
        failed: Chains that were dropped: strings that say what happened, or numbers.
        incomplete: Whether the run was stopped before its end.

    Returns:
        The findings, passed checks included.

    Raises:
        ValueError: If `method` is unknown or arrays disagree in chains and draws.
    """
    if method is None:
        method = _infer_method(engine, log_weights, log_weights_is, elbo, smc)
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}; got {method!r}.")
    draws = Draws(variables, stats or {}, unconstrained, dims, coords)
    findings, numbers = check_values(draws)
    findings += _check_run(failed, incomplete)

    def add(checked: tuple[list[Finding], dict[str, float]]) -> None:
        findings.extend(checked[0])
        numbers.update(checked[1])

    if method in ("mcmc", "unadjusted"):
        add(check_chains(draws))
        add(check_hamiltonian(draws, max_tree_depth, target_acceptance))
    if method == "unadjusted":
        findings.append(_unadjusted())
    if method == "variational":
        add(check_variational(elbo, log_weights_is))
    if point:
        add(check_point(point, draws, alone=method == "point"))
    if log_weights is not None:
        add(check_weights(log_weights))
    if method == "smc":
        add(check_smc(smc or {}, draws))
    title = f"{engine}, {_size(draws, method)}"
    return make_report(findings, numbers, title, _praise(numbers))


def _infer_method(engine, log_weights, log_weights_is, elbo, smc) -> str:
    if log_weights is not None or (smc or {}).get("temperature") is not None:
        return "smc"
    if elbo is not None or log_weights_is is not None:
        return "variational"
    if _EXACT.search(engine):
        return "exact"
    return "unadjusted" if _UNADJUSTED.search(engine) else "mcmc"


def _size(draws: Draws, method: str) -> str:
    total = draws.num_chains * draws.num_draws
    if method == "point":
        return "a maximum"
    if method == "smc":
        return f"{total} particles"
    if method in ("variational", "exact"):
        return f"{total} independent draws"
    chains = "1 chain" if draws.num_chains == 1 else f"{draws.num_chains} chains"
    return f"{chains} of {draws.num_draws} draws"


def _check_run(failed: Sequence[object], incomplete: bool) -> list[Finding]:
    findings = []
    if failed:
        what = "; ".join(str(f) if isinstance(f, str) else f"chain {f}" for f in failed)
        findings.append(
            Finding(
                "failed_chains",
                "warning",
                f"{len(failed)} of the chains failed and were dropped: {what}",
                value=float(len(failed)),
                threshold=0.0,
                remedy="Find out why before you trust the others: chains that fail tend to "
                "be those that reach a difficult region.",
                where=tuple(str(f) for f in failed),
            )
        )
    if incomplete:
        findings.append(
            Finding(
                "incomplete",
                "note",
                "The run was stopped before its end; these are the draws made so far",
                remedy="Resume or extend the run if more draws are needed.",
            )
        )
    return findings


def _unadjusted() -> Finding:
    return Finding(
        "discretisation",
        "note",
        "This sampler has no Metropolis correction: its draws carry a bias that depends on "
        "the step size, and R-hat and ESS cannot see it, because all chains share it",
        source="Welling and Teh 2011; Vollmer, Zygalakis and Teh 2016, arXiv:1501.00438",
        remedy="Run again with half the step size and compare means and standard deviations; "
        "if they differ by more than their Monte Carlo errors, the step size is too large.",
    )


def _praise(numbers: Mapping[str, float]) -> str:
    facts = []
    if np.isfinite(numbers.get("max_rhat", np.nan)):
        facts.append(f"R-hat at most {numbers['max_rhat']:.3f}")
    if np.isfinite(numbers.get("min_ess_bulk", np.nan)):
        facts.append(
            f"at least {numbers['min_ess_bulk']:.0f} effective draws in the bulk and "
            f"{numbers['min_ess_tail']:.0f} in the tails"
        )
    if numbers.get("starts_agreed", 0) > 1:
        facts.append(f"{numbers['starts_agreed']:.0f} starts agree on the maximum")
    if numbers.get("divergences") == 0:
        facts.append("no divergences")
    if np.isfinite(numbers.get("weight_ess", np.nan)):
        facts.append(f"{numbers['weight_ess']:.0f} effective particles")
    if np.isfinite(numbers.get("khat", np.nan)):
        facts.append(f"Pareto k-hat {numbers['khat']:.2f}")
    return ", ".join(facts)
