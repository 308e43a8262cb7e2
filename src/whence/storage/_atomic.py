"""Files that appear whole or not at all, and locks that end with the process that holds them.

A lock is `flock`: the kernel gives it back when its holder ends, however it ends. Linux does
so on NFS too, where the server gives the lock of a host that is gone back after its lease.
Who writes a file holds a lock on its unfinished half: a half that nobody locks was left by a
writer that was killed. Without locks (Windows, some network file systems) none is removed.
"""

import errno
import glob
import hashlib
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_MARK = ".whence-"  # in names of unfinished files


def as_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return a path with `~` as the user's folder.

    Raises:
        ValueError: If `path` is no path, or there is no such user.
    """
    try:
        found = Path(path).expanduser()
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be a path; got {path!r}: {error}") from None
    if "\0" in str(found):
        raise ValueError(f"`{name}` must be a path without null characters; got {path!r}.")
    return found


def place(path: str | os.PathLike[str], kind: str = "file") -> Path:
    """Return where to write a file or folder: links are followed, and stay.

    What killed writers of it left is removed.

    Args:
        path: As the user gave it.
        kind: "file" or "folder".

    Raises:
        FileNotFoundError: If the folder it is in does not exist.
        FileExistsError: If something of another kind is there, such as a device.
        OSError: If nothing can be written in that folder.
    """
    real = Path(os.path.realpath(as_path(path)))
    for folder in (as_path(path).parent, real.parent):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"`path` must be in an existing folder; {folder} is not one."
            )
    if kind == "file" and real.is_dir():
        raise IsADirectoryError(f"`path` must be a file; {path} is a folder.")
    remove_leftovers(real)
    there = real.exists() or real.is_symlink()  # the second of links that go in a circle
    if there and not (real.is_file() if kind == "file" else real.is_dir()):
        raise FileExistsError(f"`path` must be new or a {kind}; {path} is something else.")
    try:
        tempfile.TemporaryFile(dir=real.parent).close()
    except OSError as error:
        why = f"{error.strerror or error}: `path` must be in a folder that can be written"
        raise OSError(error.errno, why, str(path)) from error
    return real


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Put a file in place whole or not at all: write beside it, flush, rename."""
    with scratch(path) as (file, name):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.chmod(name, _permissions(path))
        if fcntl is None:
            file.close()  # Windows does not rename an open file
        os.replace(name, path)
    _flush_folder(path.parent)


@contextmanager
def scratch(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """Yield a new locked file beside `path` and its name; it is removed if it is left there."""
    held = False
    while not held:
        descriptor, name = tempfile.mkstemp(".tmp", _prefix(path), path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                lock(file)
                held = os.path.exists(name)  # or it was taken for left, not yet locked
                if held:
                    yield file, Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of a file or folder left, and only that.

    Of one that was killed between two renamings, the old folder is put back.
    """
    for left in path.parent.glob(f"{glob.escape(_prefix(path))}*.tmp"):
        remove_left(left, path)


def remove_left(left: Path, path: Path | None = None) -> None:
    """Remove an unfinished file, and the folder that goes with it, if its writer is gone."""
    try:
        with left.open("r+b") as file:
            if not lock(file):
                return
            folder = beside(left)
            if path is not None and (folder / "old").exists() and not path.exists():
                os.replace(folder / "old", path)
            shutil.rmtree(folder, ignore_errors=True)
            left.unlink(missing_ok=True)
    except OSError:  # finished meanwhile, or another user's
        return


def unfinished(folder: Path) -> Iterator[Path]:
    """Return the unfinished files below a folder."""
    return folder.rglob(f".*{_MARK}*.tmp")


def beside(file: Path) -> Path:
    """Return the folder that goes with an unfinished file."""
    return file.with_suffix(".d")


def lock(file: IO[bytes]) -> bool | None:
    """Lock an open file until it is closed.

    Returns:
        Whether it is locked now; None if the file system, or Windows, knows no such locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise
    return True


def hold(path: Path) -> IO[bytes] | str:
    """Return the open file of a lock, made if need be; or, held by another, who that is."""
    while True:
        file = path.open("a+b")
        locked = lock(file)
        if locked is False:
            with file:
                file.seek(0)
                return file.read().decode(errors="replace") or "another process"
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its last holder has just removed it
    if locked is None and fcntl is not None:
        warnings.warn(
            f"{path.parent} is on a file system without locks: let no other process write "
            "there, for that cannot be noticed.",
            RuntimeWarning,
            stacklevel=2,
        )
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    file.flush()
    return file


def _prefix(path: Path) -> str:
    name = os.fsencode(path.name)
    short = path.name if len(name) <= 100 else hashlib.sha256(name).hexdigest()
    return f".{short}{_MARK}"


def _flush_folder(folder: Path) -> None:
    """Make the new name durable; a failure here no longer endangers the content."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # folders cannot be opened on Windows
        return
    try:
        os.fsync(descriptor)
    except OSError:  # nor flushed on some network file systems
        pass
    finally:
        os.close(descriptor)


def _permissions(path: Path) -> int:
    """Return those of the file to be replaced, else what any new file would get."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
