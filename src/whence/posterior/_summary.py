"""A posterior's summary table, by our own diagnostics or by ArviZ."""

from collections.abc import Callable, Mapping, Sequence
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

    names = [var_names] if isinstance(var_names, str) else list(var_names or variables)
    if arviz or own["kind"] not in KINDS or not set(names) <= set(variables):
        return _by_arviz(to_datatree, var_names=var_names, **own, **arviz)
    from ..diagnostics._table import summary_table

    return summary_table({name: variables[name] for name in names}, **described, **own)


def _by_arviz(to_datatree: Callable[..., Any], *, group: str = "posterior", **kwargs) -> Any:
    from arviz_stats import summary

    dataset = to_datatree(groups=(group,))[group].to_dataset()
    # ArviZ labels elements wrongly where a variable's axes are not in the Dataset's order.
    return summary(dataset.transpose(*dataset.sizes), **kwargs)
