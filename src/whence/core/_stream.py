"""Data that are never in memory together: made by a function, or read slab by slab.

A stream stands for `num_data` rows. A target of a stream has some of them at hand: those of
the slab that is in memory, of which an engine takes minibatches while the loop reads the
next; or, of a stream that a function makes, no rows at all: each batch is made inside the
compiled program. Which slab belongs to which step follows from the number of the step, so
that a run that is resumed goes on at the right row.
"""

import mmap
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int

from ._convert import whole
from ._results import ModelError
from ._target import AbstractDataTarget, AbstractTarget

ENDLESS = 2**31 - 1  # batches of a function are numbered by random integers below this


class Slabs:
    """Slabs of rows, one in memory at a time: a tuple of pytrees of NumPy arrays each.

    Equal to any other: a compiled program does not depend on where data come from. Without
    `__dict__`, so that nothing that looks for arrays in a target finds those on disk.
    """

    __slots__ = ("_arrays", "_iterable", "_running", "_at", "_last", "_form", "rows", "number")

    def __init__(self, source: Any, rows: int | None):
        self._arrays = _as_arrays(source)
        self._iterable, self._at, self._last, self._form = source, -1, (), None
        if self._arrays is None:
            self._running = iter(source)
        else:
            self.rows, self.number = rows or 0, _length(self._arrays) // (rows or 1)
        first = self.read(0)
        self._form = _form(first)
        if self._arrays is None:
            self.rows, self.number = _length(first), 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slabs)

    def __hash__(self) -> int:
        return hash(Slabs)

    def read(self, index: int) -> tuple:
        """Return slab number `index`, counted from 0 over all epochs.

        Of arrays, each epoch reads contiguous slabs in a fresh order from a fresh offset, so
        that every row is as likely as any other, whatever `rows` leaves over.

        Raises:
            ModelError: If there is no such slab, or it is unlike the first.
        """
        if self._arrays is None:
            slab = self._next(index)
        else:
            slab = jax.tree.map(self._cut(index), self._arrays)
        if self._form is not None and _form(slab) != self._form:
            raise ModelError(
                f"Slab {index} of the stream must have the shapes and types of the first, "
                f"{self._form}; got {_form(slab)}."
            )
        for leaf in jax.tree.leaves(slab):
            if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                row = int(np.argwhere(~np.isfinite(leaf))[0][0])
                raise ModelError(
                    f"Slab {index} of the stream must hold finite numbers; got "
                    f"{leaf[row]} in its row {row}."
                )
        return slab

    def _cut(self, index: int) -> Callable[[Any], np.ndarray]:
        epoch, place = divmod(index, self.number)
        rng, length = np.random.default_rng(epoch), _length(self._arrays)
        offset, order = rng.integers(length), rng.permutation(self.number)
        start = int((offset + order[place] * self.rows) % length)
        beyond = max(start + self.rows - length, 0)

        def cut(array):
            parts = [np.asarray(array[start : start + self.rows])]
            if beyond:
                parts.append(np.asarray(array[:beyond]))
            slab = np.concatenate(parts)  # a copy
            _forget_pages(array)
            return slab

        return cut

    def _next(self, index: int) -> tuple:
        """Return a slab of an iterable, which is read in its order, again and again."""
        if index < self._at:
            self._running, self._at = self._again(index), -1
        while self._at < index:
            slab = next(self._running, None)
            if slab is None:
                self._running = self._again(index)
                slab = next(self._running, None)
            if slab is None:
                raise ModelError(f"The stream ran dry at slab {index}: its source is empty.")
            self._at += 1
            self._last = slab if isinstance(slab, tuple) else (slab,)
        return jax.tree.map(np.asarray, self._last)

    def _again(self, index: int) -> Iterator:
        running = iter(self._iterable)
        if running is self._iterable:
            raise ModelError(
                f"The stream ran dry at slab {index}: its source, an iterator, cannot be read "
                "again, as each chain and each epoch does. Give a list, or an object whose "
                "`__iter__` begins anew."
            )
        return running


class Stream(eqx.Module):
    """Data for `condition` that are made or read as they are needed.

    Engines of minibatches run on a target of a stream; what needs all rows at once refuses
    it. `source` is one of:

    - a function of a key that returns `(y, *inputs)`, a batch of rows along first axes; it
      is traced into the compiled program and called for each batch (simulated data);
    - `(y, *inputs)` of arrays that need not be in memory (`numpy.memmap`, zarr, HDF5): cut
      into slabs of `slab` rows, which are read in random order;
    - an iterable of slabs, each `(y, *inputs)` of arrays of one shape, such as batches of a
      Parquet file. It is read in its order, again and again, so that its rows should be in
      random order.

    A slab is used as long as it takes to see each of its rows once; meanwhile the next is
    read. Three are in memory at most. Chains should not have the time to settle within a slab:
    take as many rows as fit.

    Attributes:
        source: The function, or what reads slabs.
        num_data: Rows that the stream stands for: the likelihood of a batch is scaled up to
            these. By default those of the arrays.
        slab: Rows of a slab; None of a stream that a function makes.
        batch: Rows that a function makes; an engine's `batch_size` must be the same.
    """

    source: Any
    num_data: int = eqx.field(static=True)
    slab: int | None = eqx.field(static=True)
    batch: int | None = eqx.field(static=True)

    def __init__(self, source: Any, *, num_data: Any = None, slab: Any = None):
        """Look at the source once, and read its first slab or make its first batch.

        Args:
            source: A function, arrays, or an iterable of slabs.
            num_data: Rows in all; needed unless `source` is arrays.
            slab: Rows of a slab, if `source` is arrays.

        Raises:
            ValueError: If an argument is missing, or the source is none of these.
        """
        arrays = None if callable(source) else _as_arrays(source)
        num_data = whole("num_data", least=1, optional=True)(num_data)
        slab = whole("slab", least=1, optional=True)(slab)
        if arrays is not None:
            length = _length(arrays)
            num_data = length if num_data is None else num_data
            if slab is None or slab > length:
                raise ValueError(
                    f"`slab` must be a number of rows that fits into memory, at most the "
                    f"{length} there are; got {slab}."
                )
        elif slab is not None:
            raise ValueError(
                f"`slab` is for arrays, which are cut into slabs; got {slab} with "
                f"{type(source).__name__}."
            )
        if num_data is None:
            raise ValueError(
                "`num_data` must be given: how many rows the stream stands for, to which the "
                "likelihood of a batch is scaled. Only arrays have a length of their own."
            )
        if callable(source):
            made = jax.eval_shape(_rows_of(source), jr.key(0))
            self.batch, self.slab, self.source = _length(made), None, source
        elif arrays is None and not hasattr(source, "__iter__"):
            raise ValueError(
                "`source` must be a function of a key, arrays, or an iterable of slabs; got "
                f"{type(source).__name__}."
            )
        else:
            slabs = Slabs(source, slab)
            self.batch, self.slab, self.source = None, slabs.rows, slabs
        self.num_data = num_data

    @property
    def at_hand(self) -> int:
        """Rows, or batches of a function, that a batch may be taken of."""
        return ENDLESS if self.slab is None else self.slab

    def first(self) -> tuple:
        """Return the first slab, or a batch, as `(y, *inputs)`."""
        if self.slab is None:
            return self.make(np.arange(2, dtype=np.int32))
        return self.source.read(0)

    def make(self, numbers: Int[Array, " batch"] | np.ndarray) -> tuple:
        """Return the batch that belongs to some random integers, of a function. Traced.

        Args:
            numbers: What stands for the rows of a batch.
        """
        key = jr.fold_in(jr.fold_in(jr.key(0), numbers[0]), numbers[-1])
        return _rows_of(self.source)(key)


@runtime_checkable
class Streamed(Protocol):
    """A data target whose rows come from a stream."""

    @property
    def stream(self) -> Stream:
        """The stream."""
        ...

    def with_slab(self, index: int) -> AbstractDataTarget:
        """Return this target with another slab of its stream at hand."""
        ...

    def at_hand(self) -> AbstractDataTarget:
        """Return the target of the rows at hand alone."""
        ...


def stream_of(target: Any) -> Stream | None:
    """Return the stream that a target's rows come from, or None."""
    return target.stream if isinstance(target, Streamed) else None


def rows_at_hand(target: AbstractTarget) -> int | None:
    """Return how many rows a minibatch may be taken of; None if a target has no rows."""
    stream = stream_of(target)
    if stream is not None:
        return stream.at_hand
    return target.num_data if isinstance(target, AbstractDataTarget) else None


def _rows_of(source: Callable) -> Callable[[Any], tuple]:
    def make(key):
        made = source(key)
        return made if isinstance(made, tuple) else (made,)

    return make


def _as_arrays(source: Any) -> Any:
    """Return `(y, *inputs)` if that is what `source` is: arrays, or a tuple of them."""
    if not isinstance(source, tuple) and not hasattr(source, "shape"):
        return None
    given = source if isinstance(source, tuple) else (source,)
    leaves = jax.tree.leaves(given)
    return given if leaves and all(hasattr(x, "shape") for x in leaves) else None


def _length(arrays: Any) -> int:
    lengths = {x.shape[0] if len(x.shape) else 0 for x in jax.tree.leaves(arrays)}
    if len(lengths) != 1 or 0 in lengths:
        shapes = [tuple(x.shape) for x in jax.tree.leaves(arrays)]
        raise ValueError(
            "`source` of a stream must have rows along the first axis of each array, the same "
            f"number in all; got shapes {shapes}."
        )
    return lengths.pop()


def _forget_pages(array: Any) -> None:
    """Let go of the pages of a mapped file, which count as memory of this process."""
    if not isinstance(array, np.memmap) or array.mode == "c":  # "c": pages hold changes
        return
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def _form(slab: tuple) -> str:
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(slab))
