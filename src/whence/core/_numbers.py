"""What users give for numbers, as arrays of JAX: NumPy, tables, lists."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_map_with_path

from ._dtype import check_resolution


def is_numbers(value: Any) -> bool:
    """Whether a value is a list or tuple of numbers, or of such lists: one array."""
    plain = lambda v: isinstance(v, bool | int | float | np.generic) or is_numbers(v)
    listed = type(value) is list or (type(value) is tuple and len(value) > 0)
    return listed and all(map(plain, value))


def as_array(leaf: Any, where: str, kinds: str = "biuf") -> jax.Array:
    """Return what a user gave for numbers as an array of JAX.

    Args:
        leaf: An array-like: of NumPy, pandas, polars or xarray, a list of numbers.
        where: Its name for messages.
        kinds: Kinds of NumPy dtypes that are allowed.

    Raises:
        ValueError: On what are no numbers, masked values, or numbers that do not fit the
            present precision.
    """
    if isinstance(leaf, np.ma.MaskedArray) and np.ma.is_masked(leaf):
        raise ValueError(
            f"{where} has {int(np.ma.count_masked(leaf))} masked values. Leave these rows "
            "out, or declare the missing values as latents (`missing=` of `condition` does)."
        )
    try:
        array = _from_table(leaf, where) if hasattr(leaf, "to_numpy") else np.asarray(leaf)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(f"{where} must be an array, but its rows differ in length.") from None
    if isinstance(array.dtype, np.dtype) and jnp.issubdtype(array.dtype, jnp.floating):
        if array.dtype.itemsize < 4:  # half precision, `bfloat16`: exact in any other
            array = array.astype(jnp.result_type(float))
        elif array.dtype.itemsize > 8:  # `longdouble`: JAX has none
            array = array.astype(np.float64)
    if array.dtype == object and array.ndim == 0:
        lazy = " Write `.collect()` first." if hasattr(leaf, "collect") else ""
        raise ValueError(f"{where} must be an array; got {type(leaf).__name__}.{lazy}")
    if array.dtype.kind not in kinds:
        _refuse_kind(array.dtype, where)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):  # overflow is looked for, and reported, below
        converted = jnp.asarray(array)
    if array.dtype.kind != "c":
        _check_precision(array, converted, where)
        check_resolution(array, where)
    return converted


def arrays_of[T](tree: T, what: str) -> T:
    """Return a pytree with arrays of NumPy in it as those of JAX; see `as_array`.

    Args:
        tree: A model, or a function that is a pytree.
        what: Stands after the name of an array in messages.
    """

    def convert(path, leaf):
        if not isinstance(leaf, np.ndarray):
            return leaf
        return as_array(leaf, f"`{keystr(path, simple=True, separator='.')}` {what}", "biufc")

    return tree_map_with_path(convert, tree)


def _from_table(leaf, where) -> np.ndarray:
    """Return a column, or a table, as an array; name what is no number."""
    if hasattr(leaf, "columns"):
        columns = [_from_table(leaf[c], f"Column {c!r} of {where}") for c in leaf.columns]
        if columns and is_polars(leaf):
            return np.stack(columns, axis=1)
    elif is_polars(leaf):
        return _of_polars(leaf, where)
    elif getattr(leaf.dtype, "name", "").split("[")[0] in _REMEDIES:
        _refuse_kind(leaf.dtype, where)
    array = leaf.to_numpy()
    if array.dtype == object and hasattr(leaf, "isna"):  # nullable: what is missing is NaN
        return leaf.to_numpy(dtype=float, na_value=np.nan)
    return array


def is_polars(value: Any) -> bool:
    """Whether a value is a column or table of polars, which is not imported."""
    return type(value).__module__.startswith("polars.")


def column_kind(column: Any) -> str:
    """Return the name of the dtype of a column, without its parameters."""
    return re.split(r"[(\[]", str(column.dtype))[0]


def contents(column: Any) -> np.ndarray:
    """Return a column as an array; of what NumPy has no type for, as objects."""
    if not is_polars(column) or column_kind(column) not in _EXACT:
        return column.to_numpy()
    return np.asarray(column.to_list(), dtype=object)


def _of_polars(column, where) -> np.ndarray:
    kind = column_kind(column)
    if kind in _POLARS_REMEDIES:
        remedy = f" {remedy}." if (remedy := _POLARS_REMEDIES[kind]) else ""
        raise ValueError(f"{where} must be real numbers; got dtype {column.dtype}.{remedy}")
    array = contents(column)
    if array.dtype != object:
        return array
    values = array.tolist()
    if kind in ("Int128", "UInt128", "Boolean") and None not in values:
        whole = np.asarray(values)
        return whole if whole.dtype != object else whole.astype(float)
    return np.asarray([np.nan if v is None else float(v) for v in values])


# Dtypes of polars whose numbers are those of Python.
_EXACT = ("Int128", "UInt128", "Decimal")
_POLARS_TEXT = "Make codes of text (`whence.categories(x)`), and `.cast(float)` of numbers"
_POLARS_REMEDIES = {
    "String": _POLARS_TEXT,
    "Categorical": _POLARS_TEXT,
    "Enum": _POLARS_TEXT,
    "Date": "Make them numbers, as `(x - x.min()).dt.total_days()` does",
    "Datetime": "Make them numbers, as `(x - x.min()).dt.total_seconds()` does",
    "Duration": "Make them numbers, as `x.dt.total_seconds()` does",
    "Time": "Make them numbers, as `x.dt.hour()` does",
    "List": "Write `x.list.to_array(length)` of lists of one length",
    "Struct": "Give its fields: `x.struct.unnest()` is a table of them",
    "Binary": "",
    "Object": "",
}

_TEXT = "Make codes of text (`whence.categories(x)`), and `.astype(float)` of numbers"
_REMEDIES = {
    "category": "Write `whence.categories(x)`",
    "object": _TEXT,
    "str": _TEXT,
    "string": _TEXT,
    "datetime64": "Make them numbers, as `(x - x.min()) / np.timedelta64(1, 'D')` does",
    "timedelta64": "Make them numbers, as `x / np.timedelta64(1, 'D')` does",
}


def _refuse_kind(dtype, where) -> None:
    kind = getattr(dtype, "kind", "")
    name = {"U": "str", "S": "str"}.get(kind, str(dtype.name).split("[")[0])
    remedy = f" {_REMEDIES[name]}." if name in _REMEDIES else ""
    raise ValueError(f"{where} must be real numbers; got dtype {dtype}.{remedy}")


def _check_precision(array, converted, where):
    if converted.dtype == array.dtype:
        return
    if array.dtype.kind in "iu":
        lossy = array.size and np.any(np.asarray(converted, dtype=array.dtype) != array)
    else:
        lossy = np.any(np.isfinite(array) & ~np.isfinite(np.asarray(converted)))
    if lossy:
        raise ValueError(
            f"{where} has values that do not fit {converted.dtype} (largest magnitude "
            f"{np.abs(array).max():g}). Rescale the data or call `whence.enable_x64()`."
        )
