"""Data as people have them: columns with names, labels of rows, and categories.

Nothing of pandas, polars or xarray is imported: what an object offers says what it is.
"""

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import tree_map

from ..core._numbers import column_kind, contents

MISSING = -1  # the code of a missing category
OBSERVED = "y"  # first key of the place of an observed variable


class Categories:
    """A column of categories: whole numbers, and the labels that they stand for.

    Attributes:
        codes: A number from 0 for each entry; -1 where the category is missing.
        labels: The label of each number.
        name: Name of the axis that the labels are along, or None.
    """

    def __init__(self, codes: np.ndarray, labels: np.ndarray, name: str | None):
        """Keep what `categories` made."""
        self.codes, self.labels, self.name = codes, labels, name

    @property
    def dtype(self) -> np.dtype:
        """Type of the codes."""
        return self.codes.dtype

    def to_numpy(self) -> np.ndarray:
        """Return the codes."""
        return self.codes

    def __array__(self, dtype=None, copy=None):
        return np.array(self.codes, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.codes)

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.labels[:5])) + ", ..." * (len(self.labels) > 5)
        return f"Categories({len(self.codes)} entries; {len(self.labels)} labels: {shown})"


def categories(values: Any, labels: Any = None, *, name: str | None = None) -> Categories:
    """Make numbers of text, or of other labels such as years, for use as indices.

    `condition` does this by itself to text and to the categories of pandas and polars; use
    it for labels that are numbers, for columns that share their labels (home and away
    teams), or to say the order of labels or the name of their axis.

    Args:
        values: A column, an array or a list of labels.
        labels: All labels in order; by default those of a categorical column, else those
            that occur, sorted.
        name: Name of the axis of the model that they index; by default that of the column.

    Returns:
        The codes and their labels. As an input of `condition` it gives the axis of that name
        its labels, and `posterior.predict` maps the same labels to the same numbers.

    Raises:
        ValueError: If a value is missing, or is none of the labels.
    """
    column = categorical(values)
    if column is None:
        array = contents(values) if hasattr(values, "to_numpy") else np.asarray(values)
        if array.ndim != 1:
            raise ValueError(f"`values` must be a column; got an array of shape {array.shape}.")
        column = Column(as_objects(array), None, column_name(values))
    if name is not None and not isinstance(name, str):
        raise ValueError(f"`name` must be text; got {name!r}.")
    if labels is not None and np.ndim(labels) != 1:
        raise ValueError(f"`labels` must be a sequence of labels; got {labels!r}.")
    known = column.labels if labels is None else list(labels)
    known = as_labels(occurring([column.values]) if known is None else known)
    codes = encode(column.values, known, "`values`", "`labels`")
    return Categories(codes, known, name or column.name)


class Column(NamedTuple):
    """A column of text or categories.

    Attributes:
        values: Its labels, an array of objects; None or NaN where missing.
        labels: All labels in order, if the column says them.
        name: Name of the column, if it has one.
    """

    values: np.ndarray
    labels: Sequence[Any] | None
    name: str | None


def categorical(leaf: Any) -> Column | None:
    """Return what a column of text or categories holds; None for anything else."""
    if isinstance(leaf, Categories):
        padded = np.asarray([*leaf.labels, None], dtype=object)  # -1 is missing
        return Column(padded[leaf.codes], list(leaf.labels), leaf.name)
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or isinstance(leaf, jax.Array | Tracer):
        return None
    declared: Any = getattr(dtype, "categories", None)  # of pandas, and of an Enum of polars
    declared = list(declared) if hasattr(declared, "__len__") else None
    if declared is None and getattr(dtype, "kind", "O") not in "OUT":
        return None
    values = np.asarray(contents(leaf) if hasattr(leaf, "to_numpy") else leaf)
    is_text = column_kind(leaf) in ("str", "string", "String", "Categorical")
    if declared is None and values.dtype.kind not in "UT" and not is_text:
        known = (
            [v for v in values.ravel() if not _is_missing(v)]
            if values.dtype.kind == "O"
            else []
        )
        if not known or not all(isinstance(v, str) for v in known):
            return None
    return Column(values.astype(object), declared, column_name(leaf))


def as_objects(array: np.ndarray) -> np.ndarray:
    """Return the entries of a column: of dates as they are, in which NumPy sees integers."""
    if array.dtype.kind not in "mM":
        return array.astype(object)
    entries = np.empty(array.size, object)
    entries[:] = list(array.ravel())
    return entries.reshape(array.shape)


def is_table(leaf: Any) -> bool:
    """Whether a value is a table with columns: a DataFrame of pandas or polars, a Dataset."""
    return hasattr(leaf, "data_vars") or (
        hasattr(leaf, "to_numpy") and hasattr(leaf, "columns")  # lazy ones warn of the latter
    )


def by_column(tree: Any) -> Any:
    """Return a pytree of inputs in which tables are dicts of their columns.

    Raises:
        ValueError: If columns share a name, or are called by text and by numbers.
    """

    def split(leaf):
        if not is_table(leaf):
            return leaf
        names = list(
            leaf.columns if getattr(leaf, "data_vars", None) is None else leaf.data_vars
        )
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(
                f"Columns of a table among the inputs must have distinct names; got {twice!r} "
                "twice. Rename one."
            )
        if len({isinstance(name, str) for name in names}) > 1:
            other = next(name for name in names if not isinstance(name, str))
            raise ValueError(
                "Columns of a table among the inputs must all be called by text, or all by "
                f"numbers; got {other!r} beside text. `table.rename(columns=str)` makes text."
            )
        return {name: leaf[name] for name in names}

    return tree_map(split, tree, is_leaf=is_table)


def column_name(value: Any) -> str | None:
    """Return the name of a column; None if it has none."""
    name = getattr(value, "name", None)
    return name if isinstance(name, str) and name.isprintable() and name.strip("./ ") else None


def row_labels(value: Any) -> list[tuple[str | None, np.ndarray | None]]:
    """Return for each axis of a column or table its name and its labels, where it has them.

    Rows that are only numbered have none: neither has an index of whole numbers without a
    name, of which a table keeps gaps where rows were left out.
    """
    if hasattr(value, "dims") and hasattr(value, "indexes"):  # xarray
        named = lambda dim: isinstance(dim, str) and not re.fullmatch(r"(.*_)?dim_\d+", dim)
        found = [
            (dim if named(dim) else None, _unique(value.indexes.get(dim))) for dim in value.dims
        ]
        return [(name, labels if name else None) for name, labels in found]
    index = getattr(value, "index", None)
    if not hasattr(index, "to_numpy"):
        return []
    name, labels = column_name(index), _unique(index)
    if labels is None or (name is None and labels.dtype.kind in "biuf"):
        return [(None, None)]
    return [(name, labels)]


def _unique(index: Any) -> np.ndarray | None:
    if (
        index is None
        or type(index).__name__ == "RangeIndex"
        or getattr(index, "nlevels", 1) > 1
    ):
        return None
    labels = as_labels(index.to_numpy())
    return labels if len(np.unique(labels.astype(str))) == len(labels) else None


def check_aligned(
    y: Any, inputs: Iterable[tuple[str, Any]], labels: Mapping[str, np.ndarray]
) -> None:
    """Refuse inputs whose axes have other labels than those of the data, or another order.

    Args:
        y: Observed data, as the user gave them; or nothing, `()`.
        inputs: Names for messages, and inputs without tables.
        labels: Labels of the axes that are known.

    Raises:
        ValueError: Naming the input and the first entry that differs.
    """
    observed = list(y.values()) if isinstance(y, Mapping) else [y]
    for name, value in inputs:
        axes = _axes(value)
        for own in map(_axes, observed):
            _require_order(name, [n for n, _ in axes], [n for n, _ in own])
            if axes and own and None in (axes[0][0], own[0][0]):  # rows, by position
                _require_labels(name, axes[0][1], own[0][1], "rows of `y`")
            for axis, found in axes:
                _require_labels(name, found, dict(own).get(axis), f"axis {axis!r} of `y`")
        for axis, found in row_labels(value):
            _require_labels(name, found, labels.get(axis or ""), f"axis {axis!r}")


def _axes(value: Any) -> list[tuple[str | None, np.ndarray | None]]:
    """Return name and labels of each axis, repeated ones too; of pandas that of the rows."""
    if hasattr(value, "data_vars"):  # its axes have no order
        return []
    if hasattr(value, "dims") and hasattr(value, "indexes"):
        return [(str(dim), _labels_of(value.indexes.get(dim))) for dim in value.dims]
    index: Any = getattr(value, "index", None)
    return [(None, _labels_of(index))] if hasattr(index, "to_numpy") else []


def _labels_of(index: Any) -> np.ndarray | None:
    return None if index is None or type(index).__name__ == "RangeIndex" else index.to_numpy()


def is_count(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether labels only count, in place of others as many."""
    numbers = old.dtype.kind in "iu" and np.array_equal(old, np.arange(len(old)))
    return numbers and len(old) == len(new)


def _require_order(name, axes, own) -> None:
    shared = [axis for axis in axes if axis in own and axis is not None]
    if shared != [axis for axis in own if axis in shared]:
        raise ValueError(
            f"{name} must have its axes in the order of `y`, {tuple(own)}; got {tuple(axes)}. "
            "Write `x.transpose(...)` of xarray."
        )


def _require_labels(name, labels, own, where) -> None:
    if labels is None or own is None or len(labels) != len(own):
        return
    if is_count(own, labels) or np.array_equal(labels, own):
        return
    differs = (i for i, (a, b) in enumerate(zip(labels, own)) if key(a) != key(b))
    row = next(differs, None)
    if row is not None:
        raise ValueError(
            f"{name} must have the labels of {where}, in their order; got "
            f"{str(labels[row])!r} in row {row}, where there is {str(own[row])!r}. Write "
            "`x.loc[labels]`, or pass `x.to_numpy()` if entries belong together by position."
        )


def occurring(columns: Iterable[np.ndarray]) -> list[Any]:
    """Return the labels that occur in columns, sorted."""
    found = {key(v): v for c in columns for v in c.ravel() if not _is_missing(v)}
    try:
        return sorted(found.values())
    except TypeError:  # of several types
        return [found[k] for k in sorted(found)]


def as_labels(values: Iterable[Any]) -> np.ndarray:
    """Return labels as an array of text, numbers or dates; others become text."""
    values = list(values)
    array = np.asarray(values) if values else np.asarray(values, dtype=str)
    if array.dtype == object and all(map(_is_date, values)):
        array = array.astype("datetime64[us]")
    plain = array.ndim == 1 and array.dtype.kind in "biufUMm"
    mixed = array.dtype.kind == "U" and not all(isinstance(v, str) for v in values)
    return array if plain and not mixed else np.asarray([str(v) for v in values], dtype=str)


def key(label: Any) -> str:
    """Return what a label is compared by: 1, 1.0 and "1" are the same."""
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    if _is_date(label):
        return str(np.asarray(label, "datetime64[us]"))
    if isinstance(label, np.timedelta64 | datetime.timedelta):
        return str(np.asarray(label, "timedelta64[us]"))
    return str(label)


def _is_date(label: Any) -> bool:
    """Whether a label is a date or a time that NumPy can hold: one without a time zone."""
    known = isinstance(label, datetime.date) and getattr(label, "tzinfo", None) is None
    return known or isinstance(label, np.datetime64)


def unknown(values: np.ndarray, labels: np.ndarray) -> list[Any]:
    """Return the labels among `values` that are not in `labels`, sorted."""
    known = {key(label) for label in labels}
    return [label for label in occurring([values]) if key(label) not in known]


def encode(
    values: np.ndarray,
    labels: np.ndarray,
    where: str,
    axis: str,
    *,
    hint: str = "",
    allow_missing: bool = False,
) -> np.ndarray:
    """Return the number of each value among labels.

    Args:
        values: Labels, an array of objects.
        labels: All of them in order.
        where: Name of the column for messages.
        axis: What the labels are called in messages.
        hint: What to do about values that are no label.
        allow_missing: Give missing values the number -1 rather than refuse them.

    Raises:
        ValueError: Naming a value that is no label, or the rows without one.
    """
    flat = values.ravel()
    number = {key(label): i for i, label in enumerate(labels)}
    missing = np.array([_is_missing(v) for v in flat], dtype=bool)
    if missing.any() and not allow_missing:
        rows = [int(row) for row in np.flatnonzero(missing)]
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        raise ValueError(
            f"{where} must have a category in every row; got none in row {rows[0]}{more}. "
            'Leave these rows out (`missing="drop"` of `condition` does), or give them a '
            "category of their own."
        )
    codes = np.array([MISSING if m else number.get(key(v), -2) for v, m in zip(flat, missing)])
    strange = np.flatnonzero(codes == -2)
    if len(strange):
        others = unknown(flat[strange], labels)
        shown = ", ".join(map(repr, others[:3])) + ", ..." * (len(others) > 3)
        raise ValueError(
            f"{where} must have labels of {axis} ({_some(labels)}); got {shown}, the first in "
            f"row {int(strange[0])}.{hint}"
        )
    return codes.reshape(values.shape).astype(np.int32)


def _some(labels: np.ndarray) -> str:
    return ", ".join(map(str, labels[:5])) + ", ..." * (len(labels) > 5)


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating | np.datetime64) and bool(value != value)


class Place(NamedTuple):
    """Where a column of categories is among data, and the axis that it indexes.

    Attributes:
        path: Keys that lead there, first the number of an input; or `OBSERVED` and a name.
        axis: Name of the axis.
    """

    path: tuple[Any, ...]
    axis: str


def plain_path(path: Iterable[Any]) -> tuple[Any, ...]:
    """Return the keys of a path of JAX."""
    names = ("key", "idx", "name")
    return tuple(next((getattr(k, n) for n in names if hasattr(k, n)), str(k)) for k in path)


def axis_of(
    path: Sequence[Any], column: Column, parameters: Sequence[str], axes: Iterable[str]
) -> str:
    """Return the axis that a column indexes: of its names, the one that the model knows.

    Args:
        path: Where it is among the inputs.
        column: The column.
        parameters: Names of the inputs.
        axes: Names of the axes of the model's latents.
    """
    inner = path[-1] if len(path) > 1 else None
    first = path[0]
    known = isinstance(first, int) and first < len(parameters)
    given = parameters[first] if known else None
    names = [n for n in (column.name, inner, given) if isinstance(n, str)]
    return next((n for n in names if n in set(axes)), names[0] if names else f"input_{first}")


def describe(path: Sequence[Any], parameters: Sequence[str]) -> str:
    """Return the name of an input for messages."""
    first, rest = path[0], ".".join(map(str, path[1:]))
    known = ""
    if isinstance(first, int):
        known = f" (`{parameters[first]}`)" if first < len(parameters) else ""
        first = f"inputs[{first}]"
    return f"`{first}`{known}" + (f" at {rest!r}" if rest else "")
