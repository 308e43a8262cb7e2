"""Trees of results as netCDF files: whole or not at all, and without pickle."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ._atomic import as_path, place, replace_file
from ._encoding import check_schema, check_size, decoded, encoded, reading, writing
from ._seal import check_sealed, seal_of

if TYPE_CHECKING:
    import xarray


def save_netcdf(tree: "xarray.DataTree", path: str | os.PathLike[str]) -> Path:
    """Write a tree to a netCDF-4 file, replacing what is there in one step.

    The file is written under another name in the same folder, flushed to the disk and then
    renamed, so that a crash or a full disk leaves an earlier file as it was.

    Args:
        tree: As made by `to_datatree`.
        path: Where to; its folder must exist. A link is followed, not replaced.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If the folder does not exist.
        IsADirectoryError: If `path` is a folder.
        FileExistsError: If it is a device or the like.
        OSError: If the file cannot be written; the message says why.
    """
    path = as_path(path)
    real = place(path)
    # HDF5 writes to memory, not to the disk: when its own writing fails half-way (a full
    # disk), it keeps broken handles and may take the process down at exit.
    buffer = io.BytesIO()
    encoded(tree).to_netcdf(buffer, engine="h5netcdf")
    with buffer.getbuffer() as content:
        seal = seal_of(content)
    buffer.seek(0, io.SEEK_END)
    buffer.write(seal)
    with writing("file", path), buffer.getbuffer() as content:
        replace_file(real, content)
    return path


def load_netcdf(path: str | os.PathLike[str]) -> "xarray.DataTree":
    """Read a tree that `save_netcdf` wrote, all of it into memory.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file of this library, one of a newer version of it, or
            damaged.
    """
    import xarray

    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be an existing file; {path} is not one.")
    check_sealed(path)
    open_tree = xarray.open_datatree
    with reading("netCDF file", path):
        _check_sizes(path)
        with open_tree(path, engine="h5netcdf") as tree:
            check_schema(tree.attrs, path)
            return decoded(tree.load())


def _check_sizes(path: Path) -> None:
    """Refuse arrays that the file cannot hold, before memory is taken for them."""
    import h5py

    with h5py.File(path) as file:
        sizes: list[int] = []
        file.visititems(lambda _, item: sizes.append(getattr(item, "nbytes", 0)))
        check_size(sum(sizes), 1032 * path.stat().st_size, path)  # zlib's largest ratio
