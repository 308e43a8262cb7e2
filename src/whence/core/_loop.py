"""The one loop. Nobody else writes one.

A run is one compiled program, called in chunks from Python: it advances a state from step
`start` to step `stop`, whatever these are, and returns what the steps recorded. Between
chunks there is room for progress and Ctrl-C. Step `i` of replica `c` uses
`fold_in(fold_in(key, c), i)`, so draws depend neither on the chunk size nor on how the
replicas are spread.

On CPU the program is that of a single replica, and replicas run in threads that share the
executable: `vmap` would make every chain wait for the longest tree of each step and
evaluate both sides of every branch. On accelerators the program is vmapped over replicas.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ..storage import RunStore
from ._cache import is_data, remembered
from ._distributed import agree, first, most
from ._engine import AbstractEngine, AbstractPausingEngine
from ._mesh import Layout
from ._program import Plan, Status, build_plan, to_host, to_state
from ._spread import place_data
from ._target import AbstractTarget
from ._types import PRNGKey

CHUNK_SECONDS = 0.25  # how often, about, a run looks up

Ending = Literal["finished", "interrupted", "time over"]
_ENDINGS: tuple[Ending, ...] = ("finished", "time over", "interrupted")  # the last one counts


class Outcome(NamedTuple):
    """What the loop returns: everything on the host, replicas along the first axis.

    Attributes:
        state: Final states.
        read: Returns what a replica recorded: its stacked `Info` (NumPy) over the steps it
            made; from the store, if there is one.
        steps: Steps made by each replica.
        results: `RESULTS` of each replica.
        finished: Whether each replica made all its steps or was done.
        seconds: Durations in seconds: trace, compile, warmup, sampling.
        ending: What ended the run.
        total: Steps that every replica was to make.
    """

    state: PyTree
    read: Callable[[int], PyTree]
    steps: np.ndarray
    results: list[Any]
    finished: np.ndarray
    seconds: dict[str, float]
    ending: Ending
    total: int

    @property
    def records(self) -> list[PyTree]:
        """What each replica recorded; all of it in memory."""
        return [self.read(i) for i in range(len(self.steps))]


def run(
    target: AbstractTarget,
    engine: AbstractEngine,
    *,
    key: PRNGKey,
    steps: int | None = None,
    go_on: Callable[[Outcome], int | None] | None = None,
    deadline: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    chunk_steps: int | None = None,
    vectorised: bool | None = None,
    threads: int | None = None,
    store: RunStore | None = None,
    layout: Layout | None = None,
) -> Outcome:
    """Run `engine` on `target` to the end of its schedule, or until Ctrl-C.

    Args:
        target: The target density.
        engine: The engine.
        key: A typed key.
        steps: Steps in all, by default those of the schedule.
        go_on: Asked when these are made: returns a larger number to go on to, or None.
        deadline: Moment, by `time.perf_counter`, at which to stop.
        on_progress: Called from the main thread with steps made and steps in all.
        chunk_steps: Steps per call of the compiled program; by default about a quarter of
            a second's worth.
        vectorised: Map replicas in one program (accelerators) or run each by itself (CPU).
        threads: Threads for replicas on CPU; by default one per core.
        store: Where to write every chunk; if it holds a part of the run, go on from there.
        layout: What is divided over which devices; all replicas are in one program then.

    Returns:
        The outcome.

    Raises:
        KeyboardInterrupt: If Ctrl-C came before any replica had made a step.
        TimeoutError: If the deadline did.
    """
    schedule = engine.schedule
    if vectorised is None:
        vectorised = schedule.replicas > 1 and jax.default_backend() != "cpu"
    plan, found = remembered(build_plan, target, engine, key, chunk_steps, vectorised, layout)
    data = eqx.filter((target, engine), is_data)
    if layout is not None:
        data = place_data(layout, data)
    joint = layout is not None and jax.process_count() > 1
    together = vectorised or layout is not None
    everyone = np.arange(schedule.replicas, dtype=np.int32)
    workers = [
        _Worker(plan, engine, data, key, number, chunk_steps is not None, store, joint)
        for number in ([everyone] if together else everyone)
    ]
    total = schedule.steps if steps is None else steps
    wall = 0.0
    while True:
        begin = time.perf_counter()
        ending = _drive(workers, total, on_progress, threads, deadline)
        if joint:
            ending = _ENDINGS[most(_ENDINGS.index(ending))]
        wall += time.perf_counter() - begin
        seconds = _seconds(plan, found, workers, wall)
        outcome = _gather(workers, total, seconds, ending, together)
        if go_on is None or ending != "finished":
            return outcome
        try:
            longer = go_on(outcome)
        except KeyboardInterrupt:  # must not cost the draws
            return outcome._replace(ending="interrupted")
        longer = first(longer) if joint else longer
        if longer is None:
            return outcome
        total = longer


def _seconds(plan: Plan, found: bool, workers, wall: float) -> dict[str, float]:
    warm, rest = (sum(w.seconds[i] for w in workers) for i in (0, 1))
    share = warm / (warm + rest) if warm + rest > 0 else 0.0
    return {
        "trace": 0.0 if found else plan.program.trace_seconds,
        "compile": 0.0 if found else plan.program.compile_seconds,
        "warmup": wall * share,
        "sampling": wall * (1 - share),
    }


class _Worker:
    """Drives one replica (or all of them, vectorised) through the program."""

    def __init__(self, plan: Plan, engine, data, key, replica, fixed_chunks, store, joint):
        self.plan = plan
        self.engine = engine
        self.warmup = engine.schedule.warmup
        self.data = data
        self.key = key
        self.replica = replica
        self.fixed_chunks = fixed_chunks
        self.size = plan.length if fixed_chunks else min(16, plan.length)
        self.state = plan.state
        self.at = 0
        self.stops = np.zeros(replica.shape, int)  # where each replica stands
        self.pieces: list[tuple[int, PyTree]] = []
        self.seconds = [0.0, 0.0]  # warm-up, sampling
        self.status: Status | None = None
        self.store: RunStore | None = store
        self.joint = joint
        self.number = 0 if replica.ndim else int(replica)
        self.restore()

    def restore(self):
        """Go on from where the store is, if it holds a part of this replica."""
        found = self.store.state(self.number) if self.store else None
        if found is None:
            return
        self.stops, leaves = found
        self.at = int(np.max(self.stops))
        assert self.store is not None
        self.store.discard_after(self.number, self.at)
        for _ in self.store.chunks(self.number, self.at):
            pass  # a damaged file is found before a step is made, not after the last
        self.state = restored(self.plan.state, leaves)
        self.call(self.at)  # no steps: only says how the replica fares

    def run(self, total: int, halt: threading.Event):
        """Make steps up to `total`, in chunks whose length follows the clock."""
        while not self.finished(total) and not self.halted(halt):
            warming = self.at < self.warmup
            end = min(self.warmup, total) if warming else total
            end = min([end, *(at for at in self.engine.schedule.pauses if at > self.at)])
            begin = time.perf_counter()
            made = self.advance(min(self.at + self.size, end))
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
        if self.at in self.engine.schedule.pauses:
            self.state = self.paused()
        start, piece = self.at, self.call(stop)
        if self.store is None:
            self.pieces.append((start, piece))
        else:
            state = [to_host(leaf) for leaf in jax.tree.leaves(self.state)]
            record = jax.tree.leaves(piece)
            self.store.write(self.number, start, self.stops, record, state)
        return self.at - start

    def paused(self) -> PyTree:
        """Return the state after the engine has thought about it, replica by replica."""
        assert isinstance(self.engine, AbstractPausingEngine)
        if not self.replica.ndim:
            return self.engine.pause(self.state, self.at)
        old = jax.tree.map(to_host, self.state)
        take = lambda i: jax.tree.map(lambda x: x[i], old)
        each = [self.engine.pause(take(i), self.at) for i in range(len(self.replica))]
        new = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        return restored(self.plan.state, jax.tree.leaves(new))

    def call(self, stop: int) -> PyTree:
        """Call the program once; return what it recorded."""
        state, buffers, status = self.plan.program.call(
            self.data,
            self.state,
            self.key,
            self.replica,
            np.int32(self.at),
            np.int32(stop),
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


def restored(like: PyTree, leaves: list[np.ndarray]) -> PyTree:
    """Return the state whose leaves a store held."""
    empty, treedef = jax.tree.flatten(like)
    made = [to_state(leaf, old) for leaf, old in zip(leaves, empty, strict=True)]
    return jax.tree.unflatten(treedef, made)


def read_chunks(
    store: RunStore, number: int, info: PyTree, lanes: tuple[int, ...], length: int
) -> PyTree:
    """Return what a store holds of the first `length` steps of a replica.

    Args:
        store: The store.
        number: Number of the replica.
        info: Shapes of what one step records.
        lanes: `(replicas,)` if all are recorded together, else `()`.
        length: Number of steps.
    """
    treedef = jax.tree.structure(info)
    chunks = store.chunks(number, length)
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


def _drive(workers, total, on_progress, threads, deadline) -> Ending:
    """Run all workers up to step `total`; return what ended it."""
    halt = threading.Event()
    if threads is None:
        threads = min(len(workers), cores())
    pool = ThreadPoolExecutor(max_workers=max(threads, 1), thread_name_prefix="whence")
    ending: Ending = "finished"
    pending = {pool.submit(worker.run, total, halt) for worker in workers}
    try:
        while pending:
            try:
                finished, pending = wait(pending, timeout=_patience(on_progress, deadline))
                for future in finished:
                    future.result()  # raises here what a worker raised
                if on_progress:
                    on_progress(sum(w.at for w in workers), total * len(workers))
                if pending and deadline is not None and time.perf_counter() >= deadline:
                    ending, deadline = "time over", None
                    halt.set()
            except KeyboardInterrupt:
                if ending == "interrupted":
                    raise  # the second Ctrl-C means it
                ending = "interrupted"
                halt.set()
    finally:
        halt.set()
        pool.shutdown(wait=ending != "interrupted" or not pending, cancel_futures=True)
    return ending


def _patience(on_progress, deadline) -> float | None:
    """Return how long, in seconds, to wait for workers before looking up."""
    longest = 0.1 if on_progress else None
    if deadline is None:
        return longest
    left = max(deadline - time.perf_counter(), 0.0)
    return left if longest is None else min(left, longest)


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _gather(workers, total, seconds, ending, vectorised) -> Outcome:
    workers = [w for w in workers if w.status is not None]
    if not workers and ending == "time over":
        raise TimeoutError("The time was over before there were any draws.")
    if not workers:
        raise KeyboardInterrupt("Interrupted before there were any draws.")
    if vectorised:
        return _gather_vectorised(workers[0], total, seconds, ending)
    state = jax.tree.map(
        lambda *s: np.stack([to_host(x) for x in s]), *[w.state for w in workers]
    )
    return Outcome(
        state,
        lambda i: workers[i].recorded(),
        np.array([w.at for w in workers], dtype=int),
        [w.status.result for w in workers],
        np.array([w.finished(total) for w in workers], dtype=bool),
        seconds,
        ending,
        total,
    )


def _gather_vectorised(worker, total, seconds, ending) -> Outcome:
    steps = np.asarray(worker.stops, dtype=int)
    joined = cache(worker.recorded)
    return Outcome(
        jax.tree.map(to_host, worker.state),
        lambda i: jax.tree.map(lambda x: x[i, : steps[i]], joined()),
        steps,
        [jax.tree.map(lambda x: x[i], worker.status.result) for i in range(len(steps))],
        (steps >= total) | np.asarray(worker.status.done, dtype=bool),
        seconds,
        ending,
        total,
    )
