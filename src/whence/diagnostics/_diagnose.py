"""`diagnose`: all checks that apply to what an engine returned."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._chains import check_chains
from ._data import Draws
from ._hamiltonian import check_hamiltonian
from ._names import by_reason, plural
from ._particles import check_weights
from ._records import AbstractRecord, AdaptedChains, ParticleHistory
from ._report import Finding, Report, make_report
from ._values import check_values

METHODS = ("mcmc", "unadjusted", "variational", "smc", "exact", "point")
# Why a chain that did not fail is left out of a run that was stopped.
NOT_STARTED = "not started before the run was stopped"
IN_WARMUP = "stopped during warm-up"
SHORTER = "left out, so that the others keep the draws they have more"
CHAINS = ("mcmc", "unadjusted")  # methods whose draws are those of Markov chains


def diagnose(
    variables: Any,
    stats: Any = None,
    *,
    engine: str = "MCMC",
    method: str | None = None,
    unconstrained: Mapping[str, Any] | np.ndarray | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    log_weights: Any = None,
    record: Any = None,
    max_tree_depth: Any = None,
    failed: Any = (),
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
        engine: Name of the engine, for the title.
        method: `"mcmc"`; `"unadjusted"` (a Markov chain without a Metropolis step, such
            as SGLD); `"variational"` (independent draws from a fitted family); `"smc"`
            (weighted particles); `"exact"` (independent draws from the posterior);
            `"point"` (a maximum, without uncertainty). None: `"smc"` with `log_weights`,
            else `"mcmc"`.
        unconstrained: Positions on the unconstrained space, `(chain, draw, ...)` by name
            or one array; used to say where divergences lie and whether chains move.
        dims: Names of the axes of a variable, by variable, without chain and draw.
        coords: Labels along named axes, to name elements: `theta[Choate]`.
        log_weights: Log weights of the draws in nats, `(chain, draw)`; None if equal.
        record: What else the engine tells, for example a `VariationalFit`.
        max_tree_depth: Limit of NUTS, if `stats` has no `reached_max_treedepth`.
        failed: Chains that were dropped: strings that say what happened, or numbers.
        incomplete: Whether the run was stopped before its end.

    Returns:
        The findings, passed checks included.

    Raises:
        ValueError: If `method` is unknown, arrays disagree in chains and draws, are no
            numbers or of the wrong rank, or statistics have names of other libraries.
    """
    method = check_method(method, is_weighted=log_weights is not None)
    draws = Draws(variables, {} if stats is None else stats, unconstrained, dims, coords)
    _check_rest(draws, log_weights, record, max_tree_depth, failed)
    findings, numbers = check_values(draws)
    findings += _check_run(failed, incomplete)

    def add(checked: tuple[list[Finding], dict[str, float]]) -> None:
        findings.extend(checked[0])
        numbers.update(checked[1])

    if method in CHAINS:
        add(check_chains(draws))
        rate = record.target_acceptance if isinstance(record, AdaptedChains) else None
        add(check_hamiltonian(draws, max_tree_depth, rate))
    if method == "unadjusted":
        findings.append(_unadjusted())
    if method == "smc" and record is None:
        record = ParticleHistory()
    if record is not None:
        add(record.judge(draws, method))
    if log_weights is not None:
        add(check_weights(log_weights, "particle" if method == "smc" else "draw"))
    title = f"{engine}, {_size(draws, method)}"
    return make_report(findings, numbers, title, _praise(numbers))


def _check_rest(draws: Draws, log_weights, record, max_tree_depth, failed) -> None:
    if log_weights is not None and np.shape(log_weights) != draws.leading:
        raise ValueError(
            f"`log_weights` must have the shape of the draws, {draws.leading}; got "
            f"{np.shape(log_weights)}."
        )
    if record is not None and not isinstance(record, AbstractRecord):
        raise ValueError(f"`record` must be an `AbstractRecord`, or None; got {record!r}.")
    whole = isinstance(max_tree_depth, int | np.integer) and max_tree_depth >= 1
    if max_tree_depth is not None and not whole:
        raise ValueError(
            "`max_tree_depth` must be a whole number of at least 1, or None; got "
            f"{max_tree_depth!r}."
        )
    if isinstance(failed, str):
        raise ValueError(f"`failed` must be a list, an entry for each chain; got {failed!r}.")


def check_method(method: str | None, *, is_weighted: bool) -> str:
    """Return what draws are; raise `ValueError` unless that is one of `METHODS`."""
    method = method or ("smc" if is_weighted else "mcmc")
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}; got {method!r}.")
    return method


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
    said = [str(f) if isinstance(f, str) else f"chain {f}" for f in failed]
    stopped = [f for f in said if f.endswith((NOT_STARTED, IN_WARMUP, SHORTER))]
    failed = [f for f in said if f not in stopped]
    if failed:
        what = "; ".join(by_reason(failed))
        findings.append(
            Finding(
                "failed_chains",
                "warning",
                f"{plural(len(failed), 'chain')} failed: {what}",
                value=float(len(failed)),
                threshold=0.0,
                remedy="Find out why a chain failed before you trust the others: those that do "
                "tend to be those that reach a difficult region.",
                where=tuple(failed),
            )
        )
    if incomplete or stopped:
        without = "".join(f"; without {text}" for text in by_reason(stopped))
        findings.append(
            Finding(
                "incomplete",
                "note",
                f"The run was stopped before its end; these are the draws made so far{without}",
                remedy="Resume or extend the run if more draws are needed.",
            )
        )
    return findings


def _unadjusted() -> Finding:
    return Finding(
        "discretisation",
        "note",
        "This sampler has no Metropolis correction: its draws carry a bias that depends on "
        "the step size, and R-hat and ESS cannot see it, because all chains share it; what "
        "it does to their width is measured under `spread`, if anywhere",
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
