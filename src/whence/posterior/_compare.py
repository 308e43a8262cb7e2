"""`compare()`: which of several models predicts data best that it has not seen."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core._target import AbstractDescribedTarget
from ._posterior import Posterior


def compare(posteriors: Mapping[str, Any], **arviz: Any) -> Any:
    """Compare models by leave-one-out cross-validation: ArviZ's table.

    The best comes first; `elpd_diff` is what the others lose against it in predicting data
    that are left out, in nats, `dse` its standard error, `diag_elpd` what makes it unreliable.

    Args:
        posteriors: At least two, by name, of the same observed data. Weighted draws are
            resampled to equal weights.
        **arviz: Further arguments of `arviz.compare`, such as `var_name`, which observed
            variable is compared if there are several, or `method` of the weights.

    Returns:
        A pandas DataFrame; `arviz.plot_compare` draws it.

    Raises:
        ValueError: If the data are not the same, or a model has no pointwise likelihood.

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
