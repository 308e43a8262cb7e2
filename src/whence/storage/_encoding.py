"""What any file of ours holds beside the arrays: a schema version, attributes as JSON."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._datatree import in_file_order

if TYPE_CHECKING:
    import xarray

SCHEMA_VERSION = 1
_SCHEMA = "whence_schema"
_AXES = "whence_axes"  # of the variables of a group that the file has in another order
_JSON_ATTRS = "whence_json_attrs"


def check_schema(attrs: Mapping[Any, Any], path: Path) -> None:
    """Raise `ValueError` unless a tree with these attributes is ours and not newer."""
    if _SCHEMA not in attrs:
        raise ValueError(f"`path` must be a file that this library wrote; {path} is not.")
    version = int(attrs[_SCHEMA])
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version}; this version of whence reads up to "
            f"{SCHEMA_VERSION}. Update whence to read it."
        )


def encoded(tree: "xarray.DataTree") -> "xarray.DataTree":
    """Return a tree whose attributes a file can hold, marked as ours.

    ArviZ reads numbers under their labels, in whatever order variables are read.
    """
    import xarray

    datasets = {}
    for node in tree.subtree:
        dataset = node.to_dataset(inherit=False)
        for name, variable in dataset.variables.items():
            if variable.dtype.kind not in "fiubUM":
                raise ValueError(
                    f"Variable {name!r} in {node.path} must be of numbers, bools or strings to "
                    f"be stored; got dtype {variable.dtype}."
                )
        attrs, ordered = dataset.attrs, in_file_order(dataset)
        if ordered is not dataset:
            attrs = {**attrs, _AXES: {n: list(v.dims) for n, v in dataset.data_vars.items()}}
        datasets[node.path] = ordered.assign_attrs(_encode_attrs(attrs))
    root = datasets["/"]
    datasets["/"] = root.assign_attrs({_SCHEMA: SCHEMA_VERSION})
    return xarray.DataTree.from_dict(datasets, name=tree.name)


def decoded(tree: "xarray.DataTree") -> "xarray.DataTree":
    """Undo `encoded`."""
    for node in tree.subtree:
        node.attrs = _decode_attrs(node.attrs)
        axes = node.attrs.pop(_AXES, None)
        if axes is not None:
            dataset = node.to_dataset(inherit=False)[list(axes)]
            own = {name: dataset[name].transpose(*dims) for name, dims in axes.items()}
            node.dataset = dataset.assign(own)
    tree.attrs.pop(_SCHEMA, None)
    return tree


def _encode_attrs(attrs) -> dict[str, Any]:
    """Keep strings and plain numbers; write the rest as JSON and list which they are."""
    plain, as_json = {}, []
    for name, value in attrs.items():
        is_number = isinstance(value, (int, float, np.integer, np.floating))
        if isinstance(value, str) or (is_number and not isinstance(value, bool)):
            plain[name] = value
        else:
            plain[name] = json.dumps(value, default=_to_plain)
            as_json.append(name)
    if as_json:
        plain[_JSON_ATTRS] = json.dumps(as_json)
    return plain


def _decode_attrs(attrs) -> dict[str, Any]:
    names = json.loads(attrs.get(_JSON_ATTRS, "[]"))
    return {
        name: json.loads(value) if name in names else _unbox(value)
        for name, value in attrs.items()
        if name != _JSON_ATTRS
    }


def _to_plain(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise ValueError(f"An attribute must be a value that JSON can hold; got {value!r}.")


def _unbox(value):
    return value.item() if isinstance(value, np.generic) else value


def check_size(num_bytes: int, most: int, path: Path) -> None:
    """Raise `ValueError` if what a file says it holds is more than can be true."""
    if num_bytes > most:
        raise ValueError(
            f"{path} says that it holds {num_bytes:.3g} bytes, and {most:.3g} are possible: it "
            "is damaged, or too large for the memory of this machine."
        )


def memory() -> int:
    """Return the memory of this machine in bytes."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 2**40


@contextmanager
def writing(kind: str, path: Path) -> Iterator[None]:
    """Say of what cannot be written that what was there before is unchanged."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        message = f"Could not write the {kind} ({why}); what was there before is unchanged"
        raise OSError(error.errno, message, str(path)) from error


@contextmanager
def reading(kind: str, path: Path) -> Iterator[None]:
    """Say of what cannot be read that this library did not write it."""
    try:
        yield
    except (OSError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"`path` must be a {kind} that this library wrote; {path} cannot be read: {error}"
        ) from error
