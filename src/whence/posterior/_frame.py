"""Draws as a long table. Imported only when asked for: pandas takes a third of a second."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..diagnostics._names import Namer

_COLUMNS = ("chain", "draw", "variable", "value", "weight")


def long_frame(
    variables: Mapping[str, np.ndarray],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
    log_weights: np.ndarray | None,
) -> pd.DataFrame:
    """Return one row for each chain, draw and scalar; see `Posterior.draws_df`."""
    namer = Namer(dims, coords)
    axes = list(dict.fromkeys(a for name in variables for a in dims.get(name, ())))
    columns = {axis: f"{axis}_label" if axis in _COLUMNS else axis for axis in axes}
    parts = []
    for name, value in variables.items():
        lead, shape = value.shape[:2], value.shape[2:]
        each, size = lead[0] * lead[1], int(np.prod(shape))
        where = np.indices(shape).reshape(len(shape), size)
        labels = dict.fromkeys(axes)
        for axis, index, length in zip(dims.get(name, ()), where, shape):
            known = coords.get(axis)
            known = np.arange(length) if known is None or len(known) != length else known
            labels[axis] = np.repeat(np.asarray(known)[index], each)
        table = {
            "chain": np.tile(np.repeat(np.arange(lead[0]), lead[1]), size),
            "draw": np.tile(np.arange(lead[1]), lead[0] * size),
            "variable": pd.Categorical.from_codes(
                np.repeat(np.arange(size), each), [namer(name, shape, i) for i in range(size)]
            ),
            **{columns[axis]: labels[axis] for axis in axes},
            "value": value.reshape(each, size).T.ravel(),
        }
        if log_weights is not None:
            table["weight"] = np.tile(np.exp(log_weights).ravel(), size)
        parts.append(pd.DataFrame(table, index=range(each * size)))
    names = [name for part in parts for name in part["variable"].cat.categories]
    parts = [part.assign(variable=part["variable"].cat.set_categories(names)) for part in parts]
    return pd.concat(parts, ignore_index=True)
