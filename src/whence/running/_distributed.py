"""Several processes, perhaps on several hosts, that run one program together.

Every process runs the same Python, on the same data, with the same key, and gives its
devices to one mesh. What they do between chunks must be the same too: they compute it from
arrays that all of them have, or agree on it here. Process 0 alone writes files.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..core._convert import whole
from ..storage import RunStore


def distributed(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    devices: int | None = None,
) -> None:
    """Make this process one of several; call it before anything else in JAX.

    On a cluster that JAX knows (Slurm, Open MPI, Kubernetes, Cloud TPU) nothing need be
    given. Afterwards `jax.devices()` are those of all processes, in the order of processes.

    Args:
        coordinator: Host and port of process 0, for example `"10.0.0.1:1234"`.
        num_processes: How many there are.
        process_id: Which one this is, from 0.
        devices: CPU devices of this process; the same number in each. By default 1 (or
            JAX_NUM_CPU_DEVICES in the environment).

    Raises:
        ValueError: If JAX has started already, or does not know the cluster.
    """
    devices = whole("devices", least=1, optional=True)(devices)
    try:
        if devices is not None:
            jax.config.update("jax_num_cpu_devices", devices)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            "`whence.distributed` must be called once, before anything else in JAX (a key "
            "counts), and outside a cluster that JAX knows it needs `coordinator`, "
            f"`num_processes` and `process_id`. JAX says: {error}"
        ) from error


def is_first() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def agree(halt: bool, size: int) -> tuple[bool, int]:
    """Return whether any process wants to halt, and the chunk size of process 0."""
    told = multihost_utils.process_allgather(np.array([int(halt), size]))
    return bool(told[:, 0].any()), int(told[0, 1])


def require_alike(target: Any) -> None:
    """Raise `ValueError` unless a target's arrays have the same shapes in all processes."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(target) if hasattr(leaf, "dtype")]
    told = np.array(zlib.crc32(repr(shapes).encode()) % 2**31, np.int32)
    if len(np.unique(multihost_utils.process_allgather(told))) > 1:
        raise ValueError(
            "`target` must have as many data rows in every process, since all run the same "
            f"program; here its arrays have the shapes {shapes}. Leave some rows out."
        )


def most(number: int) -> int:
    """Return the largest number that any process gives."""
    return int(np.max(multihost_utils.process_allgather(np.array(number))))


def first(number: int | None) -> int | None:
    """Return the number that process 0 gives; it is not negative."""
    told = multihost_utils.broadcast_one_to_all(np.array(-1 if number is None else number))
    return None if told < 0 else int(told)


def create_shared(create: Callable[[], RunStore], folder: str | Path) -> RunStore:
    """Return the store that process 0 creates in a folder that all processes see.

    Raises:
        RuntimeError: If process 0 could not; there, what it found.
    """
    created = _by_first(create)
    return share(created or RunStore.open(folder))


@contextmanager
def locked(store: RunStore, layout: Any) -> Iterator[None]:
    """Let no other run write to a store; with a mesh, of several processes, process 0 does."""
    store.lock() if layout is None else _by_first(store.lock)
    try:
        yield
    finally:
        store.release()


def _by_first[T](action: Callable[[], T]) -> T | None:
    """Return what an action gives in process 0; None in the others."""
    done = error = None
    if is_first():
        try:
            done = action()
        except Exception as caught:  # the others must not wait for ever
            error = caught
    if jax.process_count() > 1 and most(int(error is not None)):
        raise error or RuntimeError("Process 0 cannot write to the store; see what it says.")
    if error is not None:
        raise error
    return done


def share(store: RunStore) -> RunStore:
    """Let process 0 alone write to a store, from when all have opened it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("whence store")
        store.read_only = not is_first()
    return store
