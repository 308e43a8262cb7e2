"""A run on disk: a manifest, and what each replica recorded, chunk by chunk.

```
manifest.json                 what is run, on what, by which versions; and its checksum
lock                          who is writing, while somebody is
start.npz                     positions to begin at, if they were chosen
replica-0003/
  000000000000-000000000250.npz   what steps 0 to 249 recorded
  state.npz                       the state after the last chunk, and where that is
```

A chunk is written before the state that follows it, each under another name, flushed and
renamed. So a process that is killed at any moment leaves a state whose chunks are all
there; a chunk beyond the state is written again, with the same content, on resuming.
Everything is NumPy arrays and JSON: no pickle.
"""

import errno
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from ._atomic import as_path, hold, remove_left, replace_file, unfinished
from ._encoding import check_size
from ._npz import packed, unpacked

RUN_SCHEMA = 2  # from 2 on the manifest has a checksum
_MANIFEST, _STATE, _LOCK, _SEAL = "manifest.json", "state.npz", "lock", "sha256"
_START = "start.npz"
_LONGEST_MANIFEST = 2**26  # bytes
# Copies that other programs make beside them have other names.
_REPLICA, _CHUNK = re.compile(r"replica-(\d+)"), re.compile(r"(\d+)-(\d+)\.npz")


class RunStore:
    """The folder of one run.

    One store at a time may write to a folder: who writes first holds its lock, until
    `release` or until the process ends, in whatever way.

    Attributes:
        folder: Where it is.
        manifest: What is run.
        read_only: Whether writing does nothing, because another process does it.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        """Keep both; use `create` or `open`."""
        self.folder = folder
        self.manifest = manifest
        self.read_only = False
        self._seen: bytes | None = None  # the manifest on disk, when it was read or written
        self._lock: IO[bytes] | None = None
        self._ended = False
        self._one = threading.RLock()  # of the threads that write

    def __del__(self):
        """Give the lock back; its file stays, for a forked process comes here too."""
        if self._lock is not None:
            self._lock.close()

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        manifest: Mapping[str, Any],
        start: Sequence[np.ndarray] = (),
    ) -> "RunStore":
        """Start a store in a new or empty folder, and lock it.

        Args:
            folder: Where to; made if it does not exist.
            manifest: JSON values.
            start: Leaves of the positions to begin at, if they were chosen.

        Raises:
            ValueError: If the folder holds anything.
            OSError: If it cannot be made or written, or another process has begun a run in it.
        """
        folder = as_path(folder, "store").absolute()
        store = cls(folder, {"schema": RUN_SCHEMA, **manifest})
        _check_empty(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"`store` cannot be written ({error.strerror}); choose another folder than"
            raise OSError(error.errno, why, str(folder)) from error
        store.lock()
        try:
            _check_empty(folder)  # another may have been faster
            if start:
                replace_file(folder / _START, _packed(list(start)))
            store.write_manifest()
        except BaseException:
            store.release()
            raise
        return store

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "RunStore":
        """Open a store that `create` made, to read it or to go on.

        Raises:
            ValueError: If the folder is none, its manifest is damaged, or its schema newer.
        """
        folder = as_path(folder, "store").absolute()
        try:
            content = _manifest_bytes(folder)
            manifest = json.loads(content)
            schema, seal = int(manifest["schema"]), manifest.pop(_SEAL, None)
            if (seal is not None or schema > 1) and seal != _sum(manifest):
                raise ValueError("its checksum is that of another content")
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"{folder} is not a run store: it has no {_MANIFEST}.") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"The {_MANIFEST} of {folder} is damaged: {error}.") from error
        if schema > RUN_SCHEMA:
            raise ValueError(
                f"{folder} was written by a newer whence (schema {schema}, this one knows "
                f"{RUN_SCHEMA}). Update whence to read it."
            )
        store = cls(folder, manifest)
        store._seen = content
        return store

    def lock(self) -> None:
        """Let nobody else write to the folder; what killed writers left there is removed.

        Raises:
            BlockingIOError: If another process, or another store in this one, writes to it.
            ValueError: If the run went on since the store was opened.
            OSError: If the folder cannot be written.
        """
        with self._one:
            if self._lock is not None or self.read_only:
                return
            try:
                held = hold(self.folder / _LOCK)
            except OSError as error:
                raise _explained(error, self.folder) from error
            if isinstance(held, str):
                raise BlockingIOError(
                    errno.EWOULDBLOCK,
                    f"`store` is being written by {held}; wait until it ends, or use another "
                    "folder. To read what it has so far, use `whence.load`. The folder is",
                    str(self.folder),
                )
            self._lock, self._ended = held, False
            if self._seen is not None and _manifest_bytes(self.folder) != self._seen:
                self._unlock()
                raise ValueError(
                    f"Another process went on with the run in {self.folder} since it was "
                    "opened here; open it again."
                )
            for left in unfinished(self.folder):
                remove_left(left)

    def release(self) -> None:
        """Let others write to the folder, and write no more without a new `lock`."""
        with self._one:
            self._unlock()
            self._ended = True

    def _unlock(self) -> None:
        if self._lock is not None:
            (self.folder / _LOCK).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One thread at a time, under the lock."""
        with self._one:
            if self._ended:
                raise ValueError(f"The run in {self.folder} has ended: nothing is written.")
            self.lock()
            try:
                yield
            except OSError as error:
                raise _explained(error, self.folder) from error

    def write_manifest(self) -> None:
        """Write the manifest as it is now, under the lock; it is held no longer than before.

        Raises:
            OSError: If it cannot be written; what was there before is unchanged.
        """
        if self.read_only:
            return
        held = self._lock is not None
        content = {**self.manifest, _SEAL: _sum(self.manifest)}
        with self._writing():
            self._seen = json.dumps(content, indent=1).encode()
            replace_file(self.folder / _MANIFEST, self._seen)
            if not held:
                self._unlock()

    def write(
        self,
        replica: int,
        start: int,
        stops: np.ndarray,
        record: list[np.ndarray],
        state: list[np.ndarray],
    ) -> None:
        """Append what steps from `start` on recorded, and the state after them.

        Args:
            replica: Number of the replica.
            start: First step.
            stops: First step not made; one for each replica that is written together.
            record: Leaves of what was recorded, up to the largest of `stops`.
            state: Leaves of the state.

        Raises:
            OSError: If the disk does not take it; what was there before is unchanged.
        """
        if self.read_only:
            return
        folder, stop = self._replica(replica), int(np.max(stops))
        with self._writing():
            folder.mkdir(exist_ok=True)
            if stop > start:
                replace_file(folder / f"{start:012d}-{stop:012d}.npz", _packed(record))
            replace_file(folder / _STATE, _packed([np.asarray(stops), *state]))

    def state(self, replica: int) -> tuple[np.ndarray, list[np.ndarray]] | None:
        """Return where a replica stands, and its state.

        Returns:
            The first step not made (as it was given to `write`) and the leaves of the state;
            None if the replica has not begun.

        Raises:
            ValueError: If the file is damaged.
        """
        path = self._replica(replica) / _STATE
        if not path.exists():
            return None
        stops, *leaves = _unpacked_or_again(path)
        return stops, leaves

    def start(self) -> list[np.ndarray]:
        """Return the leaves of the positions to begin at.

        Raises:
            ValueError: If the file is missing or damaged.
        """
        try:
            return _unpacked(self.folder / _START)
        except FileNotFoundError:
            raise ValueError(f"{self.folder} lacks {_START}: the file was removed.") from None

    def chunks(self, replica: int, stop: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Return the first step and the leaves of each recorded chunk before step `stop`.

        Args:
            replica: Number of the replica.
            stop: The first step not wanted: where a state stands, at some time.

        Raises:
            ValueError: If a file that should be there is missing or damaged; it is named.
        """
        folder = self._replica(replica)
        wanted, reached = [], 0
        # Two that overlap hold the same steps: of a writer that was killed before its state.
        for start, end, path in _chunk_files(folder):
            if reached < end and start <= reached < stop:
                wanted.append((start, path))
                reached = end
        if reached < stop:
            raise ValueError(
                f"{folder} lacks the recorded steps from {reached} to {stop}: a file was "
                f"removed; restore it from a backup.{_again(folder)}"
            )
        return ((start, _unpacked_or_again(path)) for start, path in wanted)

    def replicas(self) -> list[int]:
        """Return the numbers of the replicas that have begun."""
        begun = [f.parent.name for f in self.folder.glob(f"replica-*/{_STATE}")]
        return sorted(int(m[1]) for m in map(_REPLICA.fullmatch, begun) if m)

    def discard_after(self, replica: int, stop: int) -> None:
        """Remove chunks that were written before the state after them was.

        Args:
            replica: Number of the replica.
            stop: Where its state stands, 0 if it has none; the steps from there on are made
                again.
        """
        late = [p for start, _, p in _chunk_files(self._replica(replica)) if start >= stop]
        if late and not self.read_only:
            with self._writing():
                for path in late:
                    path.unlink(missing_ok=True)

    def num_bytes(self) -> int:
        """Return the size of all recorded chunks."""
        return sum(path.stat().st_size for path in self.folder.glob("replica-*/*-*.npz"))

    def _replica(self, replica: int) -> Path:
        return self.folder / f"replica-{replica:04d}"


def _explained(error: OSError, folder: Path) -> OSError:
    why = error.strerror or str(error)
    message = (
        f"`store` cannot be written ({why}). What is in it is safe and can be read; once "
        "there is room and permission, `whence.resume` goes on from there. The folder is"
    )
    return OSError(error.errno, message, str(folder))


def _chunk_files(folder: Path) -> list[tuple[int, int, Path]]:
    """Return first step, first step after, and file of each chunk, in order."""
    found = []
    for path in sorted(folder.glob("*-*.npz")):
        if match := _CHUNK.fullmatch(path.name):
            found.append((int(match[1]), int(match[2]), path))
    return found


def _check_empty(folder: Path) -> None:
    held = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    if set(held) - {_LOCK, _START} - {p.name for p in unfinished(folder)}:
        kind = "another run" if _MANIFEST in held else "other files"
        raise ValueError(
            f"`store` must be a new or empty folder; {folder} holds {kind}. Resume a run with "
            "`whence.resume`, or choose another folder."
        )


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / _MANIFEST
    check_size(path.stat().st_size, _LONGEST_MANIFEST, path)
    return path.read_bytes()


def _sum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _packed(arrays: list[np.ndarray]) -> bytes:
    return packed({f"a{i:05d}": array for i, array in enumerate(arrays)})


def _unpacked(path: Path) -> list[np.ndarray]:
    return list(unpacked(path).values())


def _unpacked_or_again(path: Path) -> list[np.ndarray]:
    try:
        return _unpacked(path)
    except ValueError as error:
        raise ValueError(f"{error}{_again(path.parent)}") from error


def _again(folder: Path) -> str:
    return f" Or remove {folder}: `whence.resume` then makes its steps again, the same."
