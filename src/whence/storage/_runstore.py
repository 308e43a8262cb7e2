"""A run on disk: a manifest, and what each replica recorded, chunk by chunk.

```
manifest.json                 what is run, on what, by which versions
replica-0003/
  000000000000-000000000250.npz   what steps 0 to 249 recorded
  state.npz                       the state after the last chunk, and where that is
```

A chunk is written before the state that follows it, each under another name, flushed and
renamed. So a process that is killed at any moment leaves a state whose chunks are all
there; a chunk beyond the state is written again, with the same content, on resuming.
Everything is NumPy arrays and JSON: no pickle.
"""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._atomic import replace_file

RUN_SCHEMA = 1
_MANIFEST, _STATE = "manifest.json", "state.npz"


class RunStore:
    """The folder of one run.

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

    @classmethod
    def create(cls, folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> "RunStore":
        """Start a store in a new or empty folder.

        Args:
            folder: Where to; made if it does not exist.
            manifest: JSON values.

        Raises:
            ValueError: If the folder holds anything.
            OSError: If it cannot be made or written.
        """
        folder = Path(folder)
        if folder.is_dir() and any(folder.iterdir()):
            held = "another run" if (folder / _MANIFEST).exists() else "other files"
            raise ValueError(
                f"`store` must be a new or empty folder; {folder} holds {held}. Resume a run "
                "with `whence.resume`, or choose another folder."
            )
        store = cls(folder, {"schema": RUN_SCHEMA, **manifest})
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _explained(error, folder) from error
        store.write_manifest()
        return store

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "RunStore":
        """Open a store that `create` made.

        Raises:
            ValueError: If the folder is none, its manifest is damaged, or its schema newer.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            schema = int(manifest["schema"])
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"{folder} is not a run store: it has no {_MANIFEST}.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"The {_MANIFEST} of {folder} is damaged: {error}.") from error
        if schema > RUN_SCHEMA:
            raise ValueError(
                f"{folder} was written by a newer whence (schema {schema}, this one knows "
                f"{RUN_SCHEMA}). Update whence to read it."
            )
        return cls(folder, manifest)

    def write_manifest(self) -> None:
        """Write the manifest as it is now.

        Raises:
            OSError: If it cannot be written; what was there before is unchanged.
        """
        if self.read_only:
            return
        content = json.dumps(self.manifest, indent=1).encode()
        try:
            replace_file(self.folder / _MANIFEST, content)
        except OSError as error:
            raise _explained(error, self.folder) from error

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
        try:
            folder.mkdir(exist_ok=True)
            if stop > start:
                replace_file(folder / f"{start:012d}-{stop:012d}.npz", _packed(record))
            replace_file(folder / _STATE, _packed([np.asarray(stops), *state]))
        except OSError as error:
            raise _explained(error, self.folder) from error

    def state(self, replica: int) -> tuple[np.ndarray, list[np.ndarray]] | None:
        """Return where a replica stands, and its state.

        Args:
            replica: Number of the replica.

        Returns:
            The first step not made (as it was given to `write`) and the leaves of the state;
            None if the replica has not begun.

        Raises:
            ValueError: If the file is damaged.
        """
        path = self._replica(replica) / _STATE
        if not path.exists():
            return None
        stops, *leaves = _unpacked(path)
        return stops, leaves

    def chunks(self, replica: int, stop: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Yield the first step and the leaves of each recorded chunk before step `stop`.

        Args:
            replica: Number of the replica.
            stop: The first step not wanted: where a state stands, at some time.

        Raises:
            ValueError: If a file that should be there is missing or damaged; it is named.
        """
        folder = self._replica(replica)
        reached = 0
        for start, end, path in _chunk_files(folder):
            if start >= stop or start != reached:
                break
            yield start, _unpacked(path)
            reached = end
        if reached < stop:
            raise ValueError(
                f"{folder} lacks the recorded steps from {reached} to {stop}: a file was "
                "removed."
            )

    def discard_after(self, replica: int, stop: int) -> None:
        """Remove chunks that were written before the state after them was.

        Args:
            replica: Number of the replica.
            stop: Where its state stands; the steps from there on are made again.
        """
        for start, _, path in _chunk_files(self._replica(replica)):
            if start >= stop and not self.read_only:
                path.unlink()

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
        start, stop = (int(part) for part in path.stem.split("-"))
        found.append((start, stop, path))
    return found


def _packed(arrays: list[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer, allow_pickle=False, **{f"a{i:05d}": array for i, array in enumerate(arrays)}
    )
    return buffer.getvalue()


_DAMAGE = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def _unpacked(path: Path) -> list[np.ndarray]:
    """Return the arrays of a file that `_packed` made, all of them as they were.

    `numpy.load` would not do: it believes a damaged table of contents that leaves arrays
    out, and a damaged header that makes one shorter, for then its checksum is not looked at.
    """
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as file:
            raw.seek(-22, os.SEEK_END)  # the last record; its fifth field counts the arrays
            count = struct.unpack("<4s4H2LH", raw.read())[4]
            names = [f"a{i:05d}.npy" for i in range(count)]
            if file.namelist() != names:
                raise ValueError("its table of contents is not whole")
            contents = (io.BytesIO(file.read(name)) for name in names)  # checks the CRC
            return [np.lib.format.read_array(c, allow_pickle=False) for c in contents]
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from a backup.") from error
