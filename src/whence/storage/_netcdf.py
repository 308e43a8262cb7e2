"""Trees of results as netCDF files: whole or not at all, and without pickle."""

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._atomic import replace_file

if TYPE_CHECKING:
    import xarray

SCHEMA_VERSION = 1
_SCHEMA = "whence_schema"
_JSON_ATTRS = "whence_json_attrs"


def save_netcdf(tree: "xarray.DataTree", path: str | os.PathLike[str]) -> Path:
    """Write a tree to a netCDF-4 file, replacing what is there in one step.

    The file is written under another name in the same folder, flushed to the disk and then
    renamed, so that a crash or a full disk leaves an earlier file as it was.

    Args:
        tree: As made by `to_datatree`.
        path: Where to; its folder must exist.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If the folder does not exist.
        IsADirectoryError: If `path` is a folder.
        OSError: If the file cannot be written; the message says why.
    """
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"`path` must be in an existing folder; {folder} is not one.")
    if path.is_dir():
        raise IsADirectoryError(f"`path` must be a file; {path} is a folder.")
    # HDF5 writes to memory, not to the disk: when its own writing fails half-way (a full
    # disk), it keeps broken handles and may take the process down at exit.
    buffer = io.BytesIO()
    _encoded(tree).to_netcdf(buffer, engine="h5netcdf")
    try:
        with buffer.getbuffer() as content:
            replace_file(path, content)
    except OSError as error:
        why = error.strerror or str(error)
        message = f"Could not write the file ({why}); what was there before is unchanged"
        raise OSError(error.errno, message, str(path)) from error
    return path


def load_netcdf(path: str | os.PathLike[str]) -> "xarray.DataTree":
    """Read a tree that `save_netcdf` wrote, all of it into memory.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file of this library, or one of a newer version of it.
    """
    import xarray

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be an existing file; {path} is not one.")
    try:
        with xarray.open_datatree(path, engine="h5netcdf") as tree:
            _check_schema(tree.attrs, path)
            loaded = tree.load()
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"`path` must be a netCDF file that this library wrote; {path} cannot be read: "
            f"{error}"
        ) from error
    return _decoded(loaded)


def _check_schema(attrs, path: Path) -> None:
    if _SCHEMA not in attrs:
        raise ValueError(f"`path` must be a file that this library wrote; {path} is not.")
    version = int(attrs[_SCHEMA])
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version}; this version of whence reads up to "
            f"{SCHEMA_VERSION}. Update whence to read it."
        )


def _encoded(tree: "xarray.DataTree") -> "xarray.DataTree":
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
        datasets[node.path] = dataset.assign_attrs(_encode_attrs(dataset.attrs))
    root = datasets["/"]
    datasets["/"] = root.assign_attrs({_SCHEMA: SCHEMA_VERSION})
    return xarray.DataTree.from_dict(datasets, name=tree.name)


def _decoded(tree: "xarray.DataTree") -> "xarray.DataTree":
    for node in tree.subtree:
        node.attrs = _decode_attrs(node.attrs)
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
