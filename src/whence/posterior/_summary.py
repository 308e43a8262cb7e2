"""A posterior's summary table, by our own diagnostics or by ArviZ."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def summarise(
    variables: Mapping[str, np.ndarray],
    to_datatree: Callable[..., Any],
    var_names: str | Sequence[str] | None,
    own: Mapping[str, Any],
    described: Mapping[str, Any],
    arviz: Mapping[str, Any],
) -> Any:
    """Return a `DataFrame`; see `Posterior.summary`."""
    from ..diagnostics._summary import KINDS

    names = names_of(var_names, variables)
    if arviz or own["kind"] not in KINDS or not set(names) <= set(variables):
        return _by_arviz(to_datatree, var_names=var_names, **own, **arviz)
    from ..diagnostics._table import summary_table

    return summary_table({name: variables[name] for name in names}, **described, **own)


def names_of(var_names: Any, variables: Iterable[str]) -> list[str]:
    """Return the names asked for, by default all."""
    listed = [var_names] if isinstance(var_names, str) else var_names
    listed = list(variables) if listed is None else listed
    if not isinstance(listed, Sequence) or not all(isinstance(n, str) for n in listed):
        raise ValueError(f"`var_names` must be names of variables; got {var_names!r}.")
    return list(listed) or list(variables)


def _by_arviz(
    to_datatree: Callable[..., Any],
    *,
    var_names: Any,
    group: str = "posterior",
    filter_vars: Any = None,
    **kwargs,
) -> Any:
    from arviz_base import extract
    from arviz_stats import summary

    dataset = to_datatree(groups=(group,))[group].to_dataset()
    dataset = extract(
        dataset,
        var_names=var_names,
        filter_vars=filter_vars,
        combined=False,
        keep_dataset=True,
        sample_dims=kwargs.get("sample_dims"),
    )
    # ArviZ labels elements wrongly where a variable's axes are not in the order in which axes
    # appear, in the variables that are chosen.
    order = dict.fromkeys(axis for v in dataset.data_vars.values() for axis in v.dims)
    return summary(dataset.transpose(*order, ...), **kwargs)
