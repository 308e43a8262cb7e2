"""`compare()`: which of several models predicts unseen data best, or has most evidence."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core._convert import one_of
from ..core._key import as_key
from ..core._results import InferenceWarning
from ..core._target import AbstractDescribedTarget
from ._bridge import Evidence, bridge_sampling
from ._posterior import Posterior

DISAGREE = 4.0  # standard errors between two estimates of one number


def compare(
    posteriors: Mapping[str, Any], *, by: str = "loo", key: Any = None, **arviz: Any
) -> Any:
    """Compare models by leave-one-out cross-validation, or by their evidence.

    By cross-validation the table is ArviZ's. The best comes first; `elpd_diff` is what the
    others lose against it in predicting data that are left out, in nats, `dse` its standard
    error, `diag_elpd` what makes it unreliable.

    By evidence, `log_evidence` is the log density of the data under each model, prior
    included, in nats, with its standard error; `log_bayes_factor` is what the others lose
    against the best, and `probability` that of each model if all were as probable before.
    Evidence is what the posterior's engine found (sequential Monte Carlo), or, with `key`,
    bridge sampling; where there are both, they are held against each other.

    Args:
        posteriors: At least two, by name, of the same observed data. Weighted draws are
            resampled to equal weights.
        by: `"loo"` or `"evidence"`.
        key: For bridge sampling of all posteriors; without, none is done.
        **arviz: Further arguments of `arviz.compare`, such as `var_name`, which observed
            variable is compared if there are several, or `method` of the weights.

    Returns:
        A pandas DataFrame; `arviz.plot_compare` draws that of cross-validation.

    Raises:
        ValueError: If the data are not the same, a model has no pointwise likelihood, or one
            has no evidence.

    Warns:
        InferenceWarning: If two estimates of an evidence disagree.

    References:
        Vehtari, Gelman and Gabry (2017), doi:10.1007/s11222-016-9696-4.
        Yao, Vehtari, Simpson and Gelman (2018), doi:10.1214/17-BA1091, on the weights.
    """
    if not isinstance(posteriors, Mapping) or len(posteriors) < 2:
        raise ValueError(
            "`posteriors` must be a dict of at least two posteriors by name, as "
            f"`{{'linear': a, 'robust': b}}`; got {posteriors!r}."
        )
    names, observed = list(posteriors), {}
    for name, posterior in posteriors.items():
        if not isinstance(posterior, Posterior):
            raise ValueError(
                f"`posteriors[{name!r}]` must be a `whence.Posterior`; got {posterior!r}."
            )
        if not isinstance(posterior.target, AbstractDescribedTarget):
            raise ValueError(
                f"`posteriors[{name!r}]` must have its target, with data; a posterior from a "
                "file is given it by `whence.load(path, target=target)`."
            )
        found = posterior.target.observed_data
        observed[name] = found if "var_name" not in arviz else _only(found, arviz["var_name"])
    first = observed[names[0]]
    for name in names[1:]:
        _require_same(names[0], first, name, observed[name])
    if one_of("by", ("loo", "evidence"))(by) == "evidence":
        return _by_evidence(posteriors, key)
    if len(first) > 1:
        raise ValueError(
            "`var_name` must say which observed variable is compared; there are "
            f"{', '.join(first)}."
        )
    from arviz_stats import compare

    trees = {}
    for name, posterior in posteriors.items():
        try:
            trees[name] = posterior.to_datatree(groups=("posterior", "log_likelihood"))
        except ValueError as error:
            raise ValueError(f"`posteriors[{name!r}]` cannot be compared: {error}") from error
    return compare(trees, **arviz)


def _by_evidence(posteriors: Mapping[str, Posterior], key: Any) -> Any:
    import pandas as pd

    rows = {}
    for name, posterior in posteriors.items():
        own, bridge = posterior.log_evidence, None
        if key is not None:
            bridge = bridge_sampling(posterior, key=as_key(key))
        if own is None and bridge is None:
            raise ValueError(
                f"`posteriors[{name!r}]` has no evidence, since {posterior.engine} estimates "
                "none: give a `key`, for bridge sampling, or run `TemperedSMC`."
            )
        found = [bridge] if bridge else []
        if own is not None:
            found.insert(0, Evidence(own, posterior.log_evidence_error or 0.0))
        rows[name] = [found[0].log_evidence, found[0].error]
        if len(found) == 2:
            gap = abs(found[0].log_evidence - found[1].log_evidence)
            error = float(np.hypot(found[0].error, found[1].error))
            rows[name] += list(found[1])
            if not gap <= DISAGREE * error:
                warnings.warn(
                    f"Two estimates of the log evidence of {name!r} disagree: "
                    f"{found[0].log_evidence:.2f} by {posterior.engine}, "
                    f"{found[1].log_evidence:.2f} by bridge sampling, {gap / error:.0f} "
                    "standard errors apart. Trust neither: run both with more draws, and look "
                    "whether the posterior has more modes than one of them has found.",
                    InferenceWarning,
                    stacklevel=3,
                )
    columns = ["log_evidence", "log_evidence_error", "bridge", "bridge_error"]
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.columns = columns[: table.shape[1]]
    table = table.sort_values("log_evidence", ascending=False)
    lost = table["log_evidence"].iloc[0] - table["log_evidence"]
    weights = np.exp(-lost)
    table["log_bayes_factor"] = lost
    table["probability"] = weights / weights.sum()
    return table


def _only(observed: Mapping[str, Any], name: str) -> dict[str, Any]:
    if name not in observed:
        raise ValueError(f"`var_name` must be one of {', '.join(observed)}; got {name!r}.")
    return {name: observed[name]}


def _require_same(first: str, a: Mapping[str, Any], second: str, b: Mapping[str, Any]) -> None:
    if set(a) != set(b):
        raise ValueError(
            f"The posteriors must be of the same observed variables; {first!r} has "
            f"{', '.join(a)} and {second!r} {', '.join(b)}."
        )
    for name, value in a.items():
        value, other = np.asarray(value), np.asarray(b[name])
        same = value.shape == other.shape and np.allclose(value, other, rtol=1e-5)
        if not same:
            raise ValueError(
                f"The posteriors must be of the same data, since densities of others do not "
                f"compare; {name!r} differs between {first!r} and {second!r}."
            )
