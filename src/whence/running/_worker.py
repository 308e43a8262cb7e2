"""One replica of a run (or all of them in one program), driven through its steps."""

import threading
import time
from collections.abc import Iterator

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ..core._engine import AbstractPausingProcedure, pause_each, split_state
from ..core._results import ModelError
from ..storage import RunStore
from ..storage._encoding import check_size
from ._distributed import agree
from ._feed import Feed
from ._program import Plan, Status, bytes_of, to_host, to_state
from ._progress import Tally

CHUNK_SECONDS = 0.25  # how often, about, a run looks up


class Worker:
    """Drives one replica (or all of them, vectorised) through the program."""

    def __init__(self, plan: Plan, engine, feed, key, replica, fixed_chunks, store, joint):
        self.plan = plan
        self.engine = engine
        self.warmup, self.pauses = engine.schedule.warmup, engine.schedule.pauses
        self.feed: Feed = feed
        self.key = key
        self.replica = replica
        self.fixed_chunks = fixed_chunks
        self.size = plan.length if fixed_chunks else min(16, plan.length)
        self.state = plan.state
        self.at = 0
        self.stops = np.zeros(replica.shape, int)  # where each replica stands
        self.pieces: list[tuple[int, PyTree]] = []
        self.seconds = [0.0, 0.0]  # warm-up, sampling
        self.paused_at = -1
        self.status: Status | None = None
        self.store: RunStore | None = store
        self.joint = joint
        self.number = 0 if replica.ndim else int(replica)
        self.tally = Tally(np.asarray(replica), self.warmup)
        self.error = ""  # what the model said when it broke off
        self.restore()

    def restore(self):
        """Go on from where the store is, if it holds a part of this replica."""
        if self.store is None:
            return
        found = self.store.state(self.number)
        if found is not None:
            self.stops, leaves = found
            self.at = int(np.max(self.stops))
        self.store.discard_after(self.number, self.at)
        if found is None:
            return
        for _ in self.store.chunks(self.number, self.at):
            pass  # a damaged file is found before a step is made, not after the last
        self.state = restored(self.plan.state, leaves)
        self.call(self.at)  # no steps: only says how the replica fares

    def run(self, total: int, halt: threading.Event):
        """Make steps up to `total`, in chunks whose length follows the clock.

        If the model breaks off, the chunk is halved until the step that it breaks at is
        found: what was recorded before it is kept, and other replicas go on.
        """
        broken = None  # a step that the model does not reach
        while not self.error and not self.finished(total) and not self.halted(halt):
            warming = self.at < self.warmup
            end = min(self.warmup, total) if warming else total
            end = min([end, *(at for at in self.pauses if at > self.at)])
            end = self.feed.end(self.at, end)
            if broken is not None and broken > self.at:
                end = min(end, self.at + max((broken - self.at) // 2, 1))
            begin, stop = time.perf_counter(), min(self.at + self.size, end)
            try:
                made = self.advance(stop)
            except ModelError as error:
                if stop == self.at + 1 or self.joint:
                    self.error = str(error)
                broken = stop
                continue
            spent = time.perf_counter() - begin
            self.seconds[0 if warming else 1] += spent
            if not self.fixed_chunks and made == self.size:
                factor = np.clip(CHUNK_SECONDS / max(spent, 1e-6), 0.5, 4.0)
                self.size = int(np.clip(self.size * factor, 1, self.plan.length))

    def halted(self, halt: threading.Event) -> bool:
        """Whether to stop here; with several processes, all at the same step."""
        if not self.joint:
            return halt.is_set()
        wanted, self.size = agree(halt.is_set(), self.size)
        return wanted

    def advance(self, stop: int) -> int:
        """Call the program once and keep what it recorded; return how many steps."""
        if self.at in self.pauses and self.paused_at != self.at:
            self.state, self.paused_at = self.paused(), self.at
        start, piece = self.at, self.call(stop)
        self.tally.add(start, piece)
        if self.store is None:
            self.pieces.append((start, piece))
        else:
            state = [to_host(leaf) for leaf in jax.tree.leaves(self.state)]
            record = jax.tree.leaves(piece)
            self.store.write(self.number, start, self.stops, record, state)
        return self.at - start

    def paused(self) -> PyTree:
        """Return the state after the engine has thought about it, replica by replica."""
        assert isinstance(self.engine, AbstractPausingProcedure)
        if not self.replica.ndim:
            new = self.engine.pause(eqx.combine(self.state, self.plan.rest), self.at)
            return split_state(new)[0]
        state = eqx.combine(jax.tree.map(to_host, self.state), self.plan.rest)
        new, _ = split_state(pause_each(self.engine, state, self.at))
        return restored(self.plan.state, jax.tree.leaves(new))

    def call(self, stop: int) -> PyTree:
        """Call the program once; return what it recorded."""
        data = self.feed.data(self.at)
        state, buffers, status = self.plan.program.call(
            data, self.state, self.key, self.replica, np.int32(self.at), np.int32(stop)
        )
        # Waits for the result; from here on the recorded steps are safe on the host.
        status = jax.tree.map(to_host, status)
        made = int(np.max(status.stop)) - self.at
        rows = (slice(None), slice(made)) if self.replica.ndim else slice(made)
        # NumPy slices: each new length would be a compilation in JAX.
        piece = jax.tree.map(lambda b: np.array(to_host(b)[rows]), buffers)
        # A replica that was done before does not move, though the chunk starts later.
        self.stops = np.where(status.stop > self.at, status.stop, self.stops)
        self.state, self.status, self.at = state, status, self.at + made
        return piece

    def recorded(self) -> PyTree:
        """Return all that was recorded, from memory or from the store."""
        lanes = self.replica.shape
        if self.store is not None:
            return read_chunks(self.store, self.number, self.plan.info, lanes, self.at)
        joined = assemble(self.pieces, self.plan.info, lanes, self.at)
        self.pieces = [(0, joined)]
        return joined

    def finished(self, total: int) -> bool:
        """Whether there is nothing left to do."""
        if self.status is None:
            return total == 0
        return self.at >= total or bool(np.all(self.status.done))


def restored(like: PyTree, leaves: list[np.ndarray], *lanes: int) -> PyTree:
    """Return the state whose leaves a store held, with axes of these lengths before them.

    Raises:
        ValueError: If they are not the leaves of such a state.
    """
    empty, treedef = jax.tree.flatten(like)
    made = [to_state(leaf, old) for leaf, old in zip(leaves, empty)]
    want = [f"{leaf.dtype}{[*lanes, *leaf.shape]}" for leaf in empty]
    got = [f"{leaf.dtype}{[*leaf.shape]}" for leaf in made]
    if len(leaves) != len(empty) or got != want:
        raise ValueError(
            f"The stored state is damaged or another engine's: it should hold {want}, and "
            f"holds {got}."
        )
    return jax.tree.unflatten(treedef, made)


def read_chunks(
    store: RunStore, number: int, info: PyTree, lanes: tuple[int, ...], length: int
) -> PyTree:
    """Return what a store holds of the first `length` steps of a replica."""
    treedef = jax.tree.structure(info)
    chunks = store.chunks(number, length)
    check_size(bytes_of(info, *lanes, length), store.num_bytes(), store.folder)
    pieces = ((start, jax.tree.unflatten(treedef, leaves)) for start, leaves in chunks)
    return assemble(pieces, info, lanes, length)


def assemble(
    pieces: Iterator[tuple[int, PyTree]] | list[tuple[int, PyTree]],
    info: PyTree,
    lanes: tuple[int, ...],
    length: int,
) -> PyTree:
    """Put recorded pieces one after another; one piece at a time is held besides the whole."""
    whole = jax.tree.map(lambda s: np.empty((*lanes, length, *s.shape), s.dtype), info)
    every = (slice(None),) * len(lanes)
    for start, piece in pieces:

        def put(into, part, start=start):
            stop = min(start + part.shape[len(lanes)], length)
            into[(*every, slice(start, stop))] = part[(*every, slice(stop - start))]

        jax.tree.map(put, whole, piece)
    return whole
