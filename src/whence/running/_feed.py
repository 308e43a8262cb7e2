"""Slabs of a stream, read between calls of the compiled program."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from ..core._cache import is_data
from ..core._engine import AbstractProcedure
from ..core._stream import Streamed, stream_of

Placing = Callable[[PyTree], PyTree]
_KEPT = 3  # slabs in memory: replicas need not be at the same step, and the next is read


class Feed:
    """The array leaves of a target, an engine and a start, as of any step."""

    def __init__(
        self,
        target: Any,
        engine: AbstractProcedure,
        place: Placing = lambda x: x,
        start: PyTree = None,
    ):
        """Look at what there is to feed.

        Args:
            target: The target.
            engine: What runs on it.
            place: Puts leaves on devices.
            start: Positions to begin at, or None.
        """
        stream, rows = stream_of(target), engine.schedule.rows_per_step
        self.target, self.others = target, (engine, start)
        # A slab stays until each of its rows has been seen about once.
        self.steps = max(1, stream.slab // rows) if stream and stream.slab and rows else None
        self._place = place
        if self.steps is None:
            self._plain = place(eqx.filter((target, engine, start), is_data))
            return
        self._ready: OrderedDict[int, Future] = OrderedDict()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="whence-stream")
        self._lock = threading.Lock()

    def data(self, step: int) -> PyTree:
        """Return the leaves with which a step is made."""
        if self.steps is None:
            return self._plain
        index = step // self.steps
        with self._lock:
            now = self._slab(index)
            self._slab(index + 1)  # is read while steps are made with this one
        return now.result()

    def _slab(self, index: int) -> Future:
        if index not in self._ready:
            self._ready[index] = self._reader.submit(self._read, index)
            if len(self._ready) > _KEPT:
                self._ready.popitem(last=False)
        self._ready.move_to_end(index)
        return self._ready[index]

    def _read(self, index: int) -> PyTree:
        assert isinstance(self.target, Streamed)
        return self._place(eqx.filter((self.target.with_slab(index), *self.others), is_data))

    def end(self, step: int, stop: int) -> int:
        """Return `stop`, or the step before it at which a step after `step` has other data."""
        return stop if self.steps is None else min(stop, (step // self.steps + 1) * self.steps)


def require_slab(target: Any, procedure: AbstractProcedure) -> None:
    """Raise `ValueError` if one step sees more rows than a slab of a target's stream has.

    The rows of a slab, seen again and again, would stand for all data.
    """
    stream, rows = stream_of(target), procedure.schedule.rows_per_step
    if stream is not None and stream.slab is not None and stream.slab < rows:
        raise ValueError(
            f"`slab` must be at least the {rows} rows that {procedure.name} sees in one step "
            "of the loop (`batch_size` times the updates per record, such as `thin`); got "
            f"{stream.slab}."
        )
