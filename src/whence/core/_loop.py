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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ..storage import RunStore
from ._cache import is_data, remembered
from ._engine import AbstractEngine
from ._program import Plan, Status, build_plan, to_host, to_state
from ._target import AbstractTarget
from ._types import PRNGKey

CHUNK_SECONDS = 0.25  # how often, about, a run looks up


class Outcome(NamedTuple):
    """What the loop returns: everything on the host, replicas along the first axis.

    Attributes:
        state: Final states.
        records: For each replica, its stacked `Info` (NumPy) over the steps it made.
        steps: Steps made by each replica.
        results: `RESULTS` of each replica.
        finished: Whether each replica made all its steps or was done.
        seconds: Durations in seconds: trace, compile, warmup, sampling.
    """

    state: PyTree
    records: list[PyTree]
    steps: np.ndarray
    results: list[Any]
    finished: np.ndarray
    seconds: dict[str, float]


def run(
    target: AbstractTarget,
    engine: AbstractEngine,
    *,
    key: PRNGKey,
    on_progress: Callable[[int, int], None] | None = None,
    chunk_steps: int | None = None,
    vectorised: bool | None = None,
    threads: int | None = None,
    store: RunStore | None = None,
) -> tuple[Outcome, bool]:
    """Run `engine` on `target` to the end of its schedule, or until Ctrl-C.

    Args:
        target: The target density.
        engine: The engine.
        key: A typed key.
        on_progress: Called from the main thread with steps made and steps in all.
        chunk_steps: Steps per call of the compiled program; by default about a quarter of
            a second's worth.
        vectorised: Map replicas in one program (accelerators) or run each by itself (CPU).
        threads: Threads for replicas on CPU; by default one per core.
        store: Where to write every chunk; if it holds a part of the run, go on from there.

    Returns:
        The outcome, and whether it was interrupted.

    Raises:
        KeyboardInterrupt: If Ctrl-C came before any replica had made a step.
    """
    schedule = engine.schedule
    if vectorised is None:
        vectorised = schedule.replicas > 1 and jax.default_backend() != "cpu"
    plan, found = remembered(build_plan, target, engine, key, chunk_steps, vectorised)
    data = eqx.filter((target, engine), is_data)
    everyone = np.arange(schedule.replicas, dtype=np.int32)
    workers = [
        _Worker(plan, schedule, data, key, number, chunk_steps is not None, store)
        for number in ([everyone] if vectorised else everyone)
    ]
    begin = time.perf_counter()
    interrupted = _drive(workers, schedule, on_progress, threads)
    wall = time.perf_counter() - begin
    warm, rest = (sum(w.seconds[i] for w in workers) for i in (0, 1))
    share = warm / (warm + rest) if warm + rest > 0 else 0.0
    seconds = {
        "trace": 0.0 if found else plan.program.trace_seconds,
        "compile": 0.0 if found else plan.program.compile_seconds,
        "warmup": wall * share,
        "sampling": wall * (1 - share),
    }
    return _gather(workers, schedule, seconds, vectorised), interrupted


class _Worker:
    """Drives one replica (or all of them, vectorised) through the program."""

    def __init__(self, plan: Plan, schedule, data, key, replica, fixed_chunks, store=None):
        self.plan = plan
        self.schedule = schedule
        self.data = data
        self.key = key
        self.replica = replica
        self.fixed_chunks = fixed_chunks
        self.state = plan.state
        self.at = 0
        self.pieces: list[PyTree] = []
        self.seconds = [0.0, 0.0]  # warm-up, sampling
        self.status: Status | None = None
        self.store: RunStore | None = store
        self.number = 0 if replica.ndim else int(replica)
        self.restore()

    def restore(self):
        """Go on from where the store is, if it holds a part of this replica."""
        found = self.store.read(self.number) if self.store else None
        if found is None:
            return
        self.at, _, leaves = found
        empty, treedef = jax.tree.flatten(self.plan.state)
        leaves = [to_state(leaf, like) for leaf, like in zip(leaves, empty, strict=True)]
        self.state = jax.tree.unflatten(treedef, leaves)
        self.call(self.at)  # no steps: only says how the replica fares

    def run(self, halt: threading.Event):
        """Make all steps, in chunks whose length follows the clock."""
        longest = self.plan.length
        size = longest if self.fixed_chunks else min(16, longest)
        while self.at < self.schedule.steps and not halt.is_set():
            warming = self.at < self.schedule.warmup
            end = self.schedule.warmup if warming else self.schedule.steps
            begin = time.perf_counter()
            made = self.advance(min(self.at + size, end))
            spent = time.perf_counter() - begin
            self.seconds[0 if warming else 1] += spent
            if self.finished:
                return
            if not self.fixed_chunks and made == size:
                factor = np.clip(CHUNK_SECONDS / max(spent, 1e-6), 0.5, 4.0)
                size = int(np.clip(size * factor, 1, longest))

    def advance(self, stop: int) -> int:
        """Call the program once and keep what it recorded; return how many steps."""
        start, piece = self.at, self.call(stop)
        if self.store is None:
            self.pieces.append(piece)
        else:
            state = [to_host(leaf) for leaf in jax.tree.leaves(self.state)]
            self.store.write(self.number, start, self.at, jax.tree.leaves(piece), state)
        return self.at - start

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
        status = jax.tree.map(np.asarray, status)
        made = int(np.max(status.stop)) - self.at
        rows = (slice(None), slice(made)) if self.replica.ndim else slice(made)
        # NumPy slices: each new length would be a compilation in JAX.
        piece = jax.tree.map(lambda b: np.array(np.asarray(b)[rows]), buffers)
        self.state, self.status, self.at = state, status, self.at + made
        return piece

    def recorded(self) -> PyTree:
        """Return all that was recorded, from memory or from the store."""
        pieces = self.pieces
        found = self.store.read(self.number) if self.store else None
        if found is not None:
            treedef = jax.tree.structure(self.plan.info)
            pieces = [jax.tree.unflatten(treedef, leaves) for leaves in found[1]]
        axis = 1 if self.replica.ndim else 0
        return jax.tree.map(lambda *p: np.concatenate(p, axis=axis), *pieces)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        if self.status is None:
            return self.schedule.steps == 0
        return self.at >= self.schedule.steps or bool(np.all(self.status.done))


def _drive(workers, schedule, on_progress, threads) -> bool:
    """Run all workers; return whether Ctrl-C stopped them."""
    halt = threading.Event()
    total = schedule.steps * len(workers)
    if threads is None:
        threads = min(len(workers), _cores())
    pool = ThreadPoolExecutor(max_workers=max(threads, 1), thread_name_prefix="whence")
    interrupted = False
    futures = [pool.submit(worker.run, halt) for worker in workers]
    pending = set(futures)
    try:
        while pending:
            try:
                finished, pending = wait(pending, timeout=0.1 if on_progress else None)
                for future in finished:
                    future.result()  # raises here what a worker raised
                if on_progress:
                    on_progress(sum(worker.at for worker in workers), total)
            except KeyboardInterrupt:
                if interrupted:
                    raise  # the second Ctrl-C means it
                interrupted = True
                halt.set()
    finally:
        halt.set()
        pool.shutdown(wait=not interrupted or not pending, cancel_futures=True)
    return interrupted


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _gather(workers, schedule, seconds, vectorised) -> Outcome:
    workers = [w for w in workers if w.status is not None]
    if not workers:
        raise KeyboardInterrupt("Interrupted before there were any draws.")
    if vectorised:
        return _gather_vectorised(workers, schedule, seconds)
    state = jax.tree.map(
        lambda *s: np.stack([to_host(x) for x in s]), *[w.state for w in workers]
    )
    return Outcome(
        state,
        [worker.recorded() for worker in workers],
        np.array([w.at for w in workers], dtype=int),
        [w.status.result for w in workers],
        np.array([w.finished for w in workers], dtype=bool),
        seconds,
    )


def _gather_vectorised(workers, schedule, seconds) -> Outcome:
    (worker,) = workers
    joined = worker.recorded()
    take = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    replicas = range(schedule.replicas)
    steps = np.asarray(worker.status.stop, dtype=int)
    return Outcome(
        jax.tree.map(to_host, worker.state),
        [jax.tree.map(lambda x: x[i, : steps[i]], joined) for i in replicas],
        steps,
        [take(worker.status.result, i) for i in replicas],
        (steps >= schedule.steps) | np.asarray(worker.status.done, dtype=bool),
        seconds,
    )
