"""Trees of results as zarr folders, for what is too large or too remote for one file."""

import ctypes
import json
import math
import os
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ._atomic import as_path, beside, place, remove_leftovers, scratch
from ._encoding import check_schema, check_size, decoded, encoded, memory, reading, writing
from ._seal import check_folder, foreign_file, seal_folder

if TYPE_CHECKING:
    import xarray

_CODECS = ("blosc", "zstd", "zlib", "gzip", "lz4", "vlen-utf8")  # of data, none of objects
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a zarr folder: whether it ends in `.zarr`."""
    return as_path(path).suffix == ".zarr"


def save_zarr(tree: "xarray.DataTree", path: str | os.PathLike[str]) -> Path:
    """Write a tree as a zarr folder (format 2, which every reader knows).

    The folder is written under another name beside `path` and then takes its place, in one
    step where the system can exchange two folders (Linux), so that a crash or a full disk
    leaves no half of it. An earlier one is removed after that.

    Args:
        tree: As made by `to_datatree`.
        path: Folder to write; the one it is in must exist. A link is followed, not replaced.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If the folder it is in does not exist.
        FileExistsError: If there is something of that name that `save_zarr` did not write.
        ImportError: If zarr is not installed.
        OSError: If it cannot be written; the message says why.
    """
    path = as_path(path)
    real = _zarr_place(path)
    with scratch(real) as (_, file):
        folder = beside(file)
        folder.mkdir()
        try:
            with writing("folder", path):
                with _quiet():
                    encoded(tree).to_zarr(folder / "new", zarr_format=2, consolidated=True)
                seal_folder(folder / "new")
                _exchange(folder / "new", real, folder / "old")
        finally:
            if real.exists() or not (folder / "old").exists():
                shutil.rmtree(folder, ignore_errors=True)
    return path


def load_zarr(path: str | os.PathLike[str]) -> "xarray.DataTree":
    """Read a tree that `save_zarr` wrote, all of it into memory.

    Raises:
        FileNotFoundError: If there is no such folder.
        ImportError: If zarr is not installed.
        ValueError: If it is none of this library, one of a newer version of it, or damaged; if
            it names a codec that this library does not write.
    """
    import xarray

    path = as_path(path)
    if not path.exists():
        remove_leftovers(Path(os.path.realpath(path)))  # puts back what a killed writer moved
    if not path.is_dir():
        raise FileNotFoundError(f"`path` must be an existing zarr folder; {path} is not one.")
    _require_zarr()
    check_folder(path)
    _check_arrays(path)
    open_tree = xarray.open_datatree
    with reading("zarr folder", path), _quiet(), open_tree(path, engine="zarr") as tree:
        check_schema(tree.attrs, path)
        return decoded(tree.load())


def check_destination(path: str | os.PathLike[str]) -> None:
    """Raise what saving a tree to `path` would, before there is one: see `save_zarr`."""
    _zarr_place(path) if is_zarr(path) else place(path)


def _zarr_place(path: str | os.PathLike[str]) -> Path:
    real = place(path, "folder")
    foreign = foreign_file(real) if real.exists() else None
    if foreign is not None:
        raise FileExistsError(
            f"`path` must be new or a zarr folder that this library wrote; {path} is something "
            f"else: {foreign}. Save to another one, or remove it yourself."
        )
    _require_zarr()
    return real


def _exchange(new: Path, path: Path, old: Path) -> None:
    """Put a folder in the place of another, which afterwards is `new` or `old`."""
    if not path.exists():
        os.replace(new, path)
    elif not _swap(new, path):
        os.replace(path, old)
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(old, path)
            raise


def _swap(a: Path, b: Path) -> bool:
    """Exchange two names in one step; return whether the system could."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


def _check_arrays(folder: Path) -> None:
    """Refuse arrays that would run code when they are read, or fill the memory.

    zarr's codec "pickle" runs what the file says; and arrays of objects need one.
    """
    total = 0
    for file in folder.rglob("*"):
        if file.name == "zarr.json":
            raise ValueError(f"`path` must be in zarr's format 2, as saved; {file} is not.")
        if file.name not in (".zarray", ".zmetadata"):
            continue
        try:
            content = json.loads(file.read_text())
            entries = content["metadata"] if file.name == ".zmetadata" else {".zarray": content}
            for name, array in entries.items():
                if name.endswith(".zarray"):
                    total += _checked_size(array)
        except _DAMAGE as error:
            raise ValueError(f"{file} is not as this library writes it: {error}") from error
    check_size(total, 2 * memory(), folder)  # each array is described twice


def _checked_size(array: dict) -> int:
    codecs = [*(array["filters"] or []), *filter(None, [array["compressor"]])]
    for codec in codecs:
        if codec["id"] not in _CODECS:
            raise ValueError(f"its codec {codec['id']!r} is none of {', '.join(_CODECS)}")
    dtype = np.dtype(array["dtype"])
    if dtype.hasobject and [c["id"] for c in codecs][:1] != ["vlen-utf8"]:
        raise ValueError("it holds objects")
    shape, chunk = ([int(n) for n in array[name]] for name in ("shape", "chunks"))
    if min((*shape, *chunk), default=0) < 0:
        raise ValueError("a length in it is negative")
    # A chunk that is not in the folder is made, of whatever length it is said to have.
    return max(math.prod(shape), math.prod(chunk)) * dtype.itemsize


def _require_zarr() -> None:
    try:
        import zarr  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Zarr folders need the package zarr: `pip install 'whence[zarr]'`."
        ) from error


@contextmanager
def _quiet():
    """Without zarr's remarks on its own formats, which no user of ours can act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(zarr|xarray)\b")
        yield
