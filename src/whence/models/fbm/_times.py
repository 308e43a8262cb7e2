"""Times of observations: what they must be."""

from typing import Any

import numpy as np


def increasing(name: str, times: Any, start: float | None = None) -> np.ndarray:
    """Return times in float64; raise unless they are numbers that increase."""
    grid = np.asarray(times)
    if grid.ndim != 1 or grid.size == 0 or grid.dtype.kind not in "iuf":
        raise ValueError(
            f"`{name}` must be a vector of numbers; got shape {grid.shape}, {grid.dtype}."
        )
    if not np.all(np.isfinite(grid)):
        raise ValueError(f"`{name}` must be finite; {np.sum(~np.isfinite(grid))} are not.")
    gaps = np.diff(grid.astype(np.float64))
    if np.any(gaps <= 0):
        i = int(np.argmax(gaps <= 0))
        what, remedy = "are not sorted", "Sort them, and `y` with them."
        if gaps[i] == 0:
            what = "repeat"
            remedy = "Put observations of one time into the columns of `y`, or average them."
        raise ValueError(
            f"`{name}` must increase; they {what}: {grid[i]} is followed by {grid[i + 1]}. "
            f"{remedy}"
        )
    if start is not None and grid[0] < start:
        raise ValueError(
            f"`{name}` must not be before the start, {start}; the first is {grid[0]}."
        )
    return grid.astype(np.float64)


def filled(y: Any, lead: tuple[int, ...], observed: Any = None) -> tuple[Any, Any]:
    """Return data with one that was observed in place of what is missing, and a mask."""
    if isinstance(y, np.ma.MaskedArray):
        y = np.ma.filled(y.astype(float), np.nan)
    y = np.asarray(y)
    if y.dtype.kind not in "biuf":
        raise ValueError(f"`y` must be real numbers; got dtype {y.dtype}.")
    y = y if y.dtype.kind == "f" else y.astype(np.float64)
    if y.shape[: len(lead)] != lead:
        raise ValueError(
            f"`y` must have one row for each of the {lead[-1]} times; got shape {y.shape}."
        )
    seen = ~np.isnan(y)
    if observed is not None:
        observed = np.asarray(observed)
        if observed.dtype != bool or observed.shape != y.shape:
            raise ValueError(
                f"`observed` must be True or False for each number of `y`, {y.shape}; got "
                f"shape {observed.shape}, {observed.dtype}."
            )
        seen &= observed
    if not np.all(np.isfinite(y[seen])):
        raise ValueError(f"`y` must be finite or NaN; got {y[seen][~np.isfinite(y[seen])][0]}.")
    if not seen.any():
        raise ValueError(f"All {y.size} numbers of `y` are missing: there is nothing to fit.")
    return np.where(seen, y, y[seen][0]).astype(y.dtype), seen
