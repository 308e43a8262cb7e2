"""Whether files are as they were written: neither HDF5 nor zarr would notice a flipped bit.

A netCDF file of ours ends with a mark and the SHA-256 of all before it: HDF5 does not look
beyond the end that its own header names. A zarr folder has a list of such sums, since a chunk
that is missing there would read as if it had never been written. What has no seal, because
another program wrote it, is not checked.
"""

import hashlib
import json
from pathlib import Path

_MARK = b"\nwhence sha256 "
_LENGTH = len(_MARK) + hashlib.sha256().digest_size
_LIST = ".whence-sha256.json"
_BLOCK = 2**20  # bytes hashed at a time


def seal_of(content: bytes | memoryview) -> bytes:
    """Return what to append to a file with this content."""
    return _MARK + hashlib.sha256(content).digest()


def check_sealed(path: Path) -> None:
    """Raise `ValueError` if a file ends with a seal that is not that of its content."""
    left = path.stat().st_size - _LENGTH
    if left < 0:
        return
    found = hashlib.sha256()
    with path.open("rb") as file:
        while left > 0:
            block = file.read(min(left, _BLOCK))
            found.update(block)
            left -= len(block)
        seal = file.read()
    if seal.startswith(_MARK) and seal != _MARK + found.digest():
        raise ValueError(_damaged(path))


def seal_folder(folder: Path) -> None:
    """Write the list of the sums of all files in a folder."""
    sums = {
        path.relative_to(folder).as_posix(): _sum(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / _LIST).write_text(json.dumps(sums))


def check_folder(folder: Path) -> None:
    """Raise `ValueError` if a file of a sealed folder is missing or not what it was."""
    if not (folder / _LIST).is_file():
        return
    try:
        sums = dict(json.loads((folder / _LIST).read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(_damaged(folder, _LIST)) from error
    for name, wanted in sums.items():
        if not (folder / name).is_file() or _sum(folder / name) != wanted:
            raise ValueError(_damaged(folder, name))


def foreign_file(folder: Path) -> str | None:
    """Return what shows that something else than `seal_folder` made a folder, or None."""
    try:
        sums = dict(json.loads((folder / _LIST).read_text()))
    except (OSError, ValueError, TypeError):
        return f"there is no list of its files ({_LIST})"
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name not in sums and name != _LIST:
            return f"{name!r} in it is another's"
    return None


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, part: str = "") -> str:
    # The name of a part comes from a list that may be damaged itself: it is only quoted.
    what = f"{path} ({part!r} in it)" if part else str(path)
    return f"{what} is damaged or was changed by another program; restore it from a backup."
