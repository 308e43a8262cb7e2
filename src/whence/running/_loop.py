"""The loop that runs every engine and procedure.

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
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree
from threadpoolctl import threadpool_limits

from ..core._cache import remembered
from ..core._engine import AbstractProcedure
from ..core._results import INSTEAD_OF_ERROR, RESULTS, InferenceError
from ..core._types import PRNGKey
from ..storage import RunStore
from ._distributed import first, most
from ._feed import Feed
from ._mesh import Layout
from ._program import Plan, build_plan, to_host
from ._progress import ChainProgress
from ._recompiled import note_compilation
from ._sharding import place_data
from ._worker import Worker

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
        errors: What the model said where it broke off, by the number of the replica.
        numbers: Numbers of the replicas that started; None for all, in order.
    """

    state: PyTree
    read: Callable[[int], PyTree]
    steps: np.ndarray
    results: list[Any]
    finished: np.ndarray
    seconds: dict[str, float]
    ending: Ending
    total: int
    errors: Mapping[int, str] = {}
    numbers: tuple[int, ...] | None = None

    @property
    def records(self) -> list[PyTree]:
        """What each replica recorded; all of it in memory."""
        return [self.read(i) for i in range(len(self.steps))]


def run(
    target: Any,
    engine: AbstractProcedure,
    *,
    key: PRNGKey,
    steps: int | None = None,
    go_on: Callable[[Outcome], int | None] | None = None,
    deadline: float | None = None,
    on_progress: Callable[[int, int, list[ChainProgress]], None] | None = None,
    chunk_steps: int | None = None,
    vectorised: bool | None = None,
    threads: int | None = None,
    store: RunStore | None = None,
    layout: Layout | None = None,
    start: PyTree = None,
) -> Outcome:
    """Run `engine` on `target` to the end of its schedule, or until Ctrl-C.

    Args:
        target: The target density.
        engine: The engine.
        key: A typed key.
        steps: Steps in all, by default those of the schedule.
        go_on: Asked when these are made: returns a larger number to go on to, or None.
        deadline: Moment, by `time.perf_counter`, at which to stop.
        on_progress: Called from the main thread with steps made, steps in all (of all chains
            together) and how each chain fares.
        chunk_steps: Steps per call of the compiled program; by default about a quarter of
            a second's worth.
        vectorised: Map replicas in one program (accelerators) or run each by itself (CPU).
        threads: Threads for replicas on CPU; by default one per core.
        store: Where to write every chunk; if it holds a part of the run, go on from there.
        layout: What is divided over which devices; all replicas are in one program then.
        start: Positions to begin at, along a leading axis; None for what the target says.

    Raises:
        KeyboardInterrupt: If Ctrl-C came before any replica had made a step.
        TimeoutError: If the deadline did.
    """
    schedule = engine.schedule
    if vectorised is None:
        vectorised = schedule.replicas > 1 and jax.default_backend() != "cpu"
    plan, found = remembered(
        build_plan, target, engine, key, chunk_steps, vectorised, layout, start
    )
    if not found:
        note_compilation(target, engine)
    place = (lambda data: data) if layout is None else partial(place_data, layout)
    feed = Feed(target, engine, place, start)
    joint = layout is not None and jax.process_count() > 1
    together = vectorised or layout is not None
    everyone = np.arange(schedule.replicas, dtype=np.int32)
    workers = [
        Worker(plan, engine, feed, key, number, chunk_steps is not None, store, joint)
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
        if longer is None or all(worker.error or worker.finished(longer) for worker in workers):
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


def _drive(workers, total, on_progress, threads, deadline) -> Ending:
    """Run all workers up to step `total`; return what ended it."""
    halt = threading.Event()
    if threads is None:
        threads = min(len(workers), cores())
    # Threads of BLAS would compete with ours for the same cores.
    alone = threadpool_limits(1 if threads > 1 else None, user_api="blas")
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
                    chains = [chain for w in workers for chain in w.tally.chains(w.stops)]
                    made = sum(chain.steps for chain in chains)
                    on_progress(made, total * len(chains), chains)
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
        alone.restore_original_limits()
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
    errors = {w.number: w.error for w in workers if w.error}
    workers = [w for w in workers if w.status is not None]
    if not workers and errors:
        said = next(iter(errors.values())).rstrip(".")
        raise InferenceError(f"{said}. No step was made. {INSTEAD_OF_ERROR}")
    if not workers and ending == "time over":
        raise TimeoutError("The time was over before there were any draws.")
    if not workers:
        raise KeyboardInterrupt("Interrupted before there were any draws.")
    if vectorised:
        made = _gather_vectorised(workers[0], total, seconds, ending)
        every = range(len(made.steps)) if errors else ()
        errors = dict.fromkeys(every, workers[0].error)
        results = [RESULTS.model_error for _ in every] or made.results
        return made._replace(errors=errors, results=results)
    state = jax.tree.map(
        lambda *s: np.stack([to_host(x) for x in s]), *[w.state for w in workers]
    )
    return Outcome(
        eqx.combine(state, workers[0].plan.rest),
        lambda i: workers[i].recorded(),
        np.array([w.at for w in workers], dtype=int),
        [RESULTS.model_error if w.error else w.status.result for w in workers],
        np.array([w.finished(total) for w in workers], dtype=bool),
        seconds,
        ending,
        total,
        errors,
        tuple(w.number for w in workers),
    )


def _gather_vectorised(worker, total, seconds, ending) -> Outcome:
    steps = np.asarray(worker.stops, dtype=int)
    joined = cache(worker.recorded)
    return Outcome(
        eqx.combine(jax.tree.map(to_host, worker.state), worker.plan.rest),
        lambda i: jax.tree.map(lambda x: x[i, : steps[i]], joined()),
        steps,
        [jax.tree.map(lambda x: x[i], worker.status.result) for i in range(len(steps))],
        (steps >= total) | np.asarray(worker.status.done, dtype=bool),
        seconds,
        ending,
        total,
    )
