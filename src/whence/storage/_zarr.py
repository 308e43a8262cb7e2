"""Trees of results as zarr folders, for what is too large or too remote for one file."""

import os
import shutil
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ._encoding import check_schema, decoded, encoded, reading, writing
from ._seal import check_folder, seal_folder

if TYPE_CHECKING:
    import xarray


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a zarr folder: whether it ends in `.zarr`."""
    return Path(path).suffix == ".zarr"


def save_zarr(tree: "xarray.DataTree", path: str | os.PathLike[str]) -> Path:
    """Write a tree as a zarr folder (format 2, which every reader knows).

    The folder is written under another name beside `path` and then renamed, so that a crash
    or a full disk leaves no half of it. An earlier one is removed after that.

    Args:
        tree: As made by `to_datatree`.
        path: Folder to write; the one it is in must exist.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If the folder it is in does not exist.
        FileExistsError: If there is something else of that name.
        ImportError: If zarr is not installed.
        OSError: If it cannot be written; the message says why.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"`path` must be in an existing folder; {path.parent} is not one."
        )
    if path.exists() and not _is_group(path):
        raise FileExistsError(f"`path` must be new or a zarr folder; {path} is something else.")
    _require_zarr()
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with writing("folder", path):
            with _quiet():
                encoded(tree).to_zarr(scratch / "new", zarr_format=2, consolidated=True)
            seal_folder(scratch / "new")
            if path.exists():
                os.replace(path, scratch / "old")
            os.replace(scratch / "new", path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def load_zarr(path: str | os.PathLike[str]) -> "xarray.DataTree":
    """Read a tree that `save_zarr` wrote, all of it into memory.

    Args:
        path: The folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        ImportError: If zarr is not installed.
        ValueError: If it is none of this library, one of a newer version of it, or damaged.
    """
    import xarray

    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"`path` must be an existing zarr folder; {path} is not one.")
    _require_zarr()
    check_folder(path)
    open_tree = xarray.open_datatree
    with reading("zarr folder", path), _quiet(), open_tree(path, engine="zarr") as tree:
        check_schema(tree.attrs, path)
        loaded = tree.load()
    return decoded(loaded)


def _is_group(path: Path) -> bool:
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


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
