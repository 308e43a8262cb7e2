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
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from ._cache import Program, compile_now, is_data, remembered
from ._engine import AbstractEngine
from ._target import AbstractTarget
from ._types import PRNGKey

CHUNK_BYTES = 2**25  # at most this much recorded data per call and replica
CHUNK_STEPS = 1024
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


class _Status(NamedTuple):
    stop: Any  # first step not made
    done: Any
    result: Any


def chunk(plan, data, state, key, replica, start, stop):
    """Advance one replica from `start` to at most `stop`: the compiled program.

    The first chunk (`start == 0`) makes the state; the one it is given is a placeholder.

    Args:
        plan: The `_Shapes` of this run: pure functions and the shapes of what they return.
        data: Array leaves of the target and the engine.
        state: State after step `start - 1`.
        key: Key of the run.
        replica: Number of this replica.
        start: First step to make.
        stop: First step not to make.

    Returns:
        The new state, the recorded steps, and a `_Status`.
    """
    init_key, step_key = jr.split(jr.fold_in(key, replica))
    state = jax.lax.cond(start == 0, lambda: plan.init(data, init_key), lambda: state)
    buffers = jax.tree.map(lambda s: _zeros((plan.length, *s.shape), s.dtype), plan.info)

    def cond(carry):
        index, state, _ = carry
        return (index < stop) & ~plan.engine_of(data).done(state)

    def body(carry):
        index, state, buffers = carry
        state, info = plan.step(data, state, index, jr.fold_in(step_key, index))
        write = lambda b, x: jax.lax.dynamic_update_index_in_dim(b, x, index - start, 0)
        return index + 1, state, jax.tree.map(write, buffers, info)

    index, state, buffers = jax.lax.while_loop(cond, body, (start, state, buffers))
    engine = plan.engine_of(data)
    return state, buffers, _Status(index, engine.done(state), engine.result(state))


class _Shapes(NamedTuple):
    """Pure functions of an engine on a target, and the shapes of state and info."""

    init: Any
    step: Any
    engine_of: Any
    state: PyTree
    info: PyTree
    length: int


class _Plan(NamedTuple):
    """A compiled run, without its data."""

    program: Program
    state: PyTree  # placeholder
    length: int  # most steps that one call records


def build_plan(target, engine, key, chunk_steps, vectorised) -> _Plan:
    """Trace and compile `chunk` for a target and an engine of this structure.

    `init` and `step` are wrapped in `jit`, which traces each once however often it is used
    here, and are inlined into the one program.
    """
    begin = time.perf_counter()
    data, static = eqx.partition((target, engine), is_data)

    @partial(jax.jit, inline=True)
    def init(data, key):
        target, engine = eqx.combine(data, static)
        return engine.init(target, key=key)

    @partial(jax.jit, inline=True)
    def step(data, state, index, key):
        target, engine = eqx.combine(data, static)
        return engine.step(target, state, index, key=key)

    index = jax.ShapeDtypeStruct((), np.int32)
    state = jax.eval_shape(init, data, key)
    state, info = jax.eval_shape(step, data, state, index, key)
    schedule = engine.schedule
    replicas = schedule.replicas
    length = _buffer_steps(info, schedule, chunk_steps, replicas if vectorised else 1)
    shapes = _Shapes(init, step, lambda d: eqx.combine(d, static)[1], state, info, length)
    begin = time.perf_counter() - begin

    def whence_chunk(data, state, key, replica, start, stop):
        one = lambda state, replica: chunk(shapes, data, state, key, replica, start, stop)
        # `start` and `stop` are not mapped over: branches on the step index stay branches.
        return jax.vmap(one)(state, replica) if vectorised else one(state, replica)

    lead = (replicas,) if vectorised else ()
    placeholder = jax.tree.map(lambda s: _placeholder((*lead, *s.shape), s.dtype), state)
    number = np.arange(replicas, dtype=np.int32) if vectorised else np.int32(0)
    program = compile_now(
        whence_chunk, data, placeholder, key, number, np.int32(0), np.int32(0)
    )
    program = program._replace(trace_seconds=program.trace_seconds + begin)
    return _Plan(program, placeholder, length)


def _buffer_steps(info, schedule, chunk_steps, lanes) -> int:
    if chunk_steps is not None:
        return max(1, min(chunk_steps, schedule.steps))
    size = lanes * sum(np.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(info))
    most = max(1, min(CHUNK_STEPS, schedule.steps))
    return int(np.clip(CHUNK_BYTES // max(int(size), 1), 1, most))


def _placeholder(shape, dtype):
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return _zeros(shape, dtype)
    return np.zeros(shape, dtype)


def _zeros(shape, dtype):
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            jnp.zeros((*shape, *jr.key_data(jr.key(0)).shape), dtype=jnp.uint32)
        )
    return jnp.zeros(shape, dtype)


def run(
    target: AbstractTarget,
    engine: AbstractEngine,
    *,
    key: PRNGKey,
    on_progress: Callable[[int, int], None] | None = None,
    chunk_steps: int | None = None,
    vectorised: bool | None = None,
    threads: int | None = None,
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

    Returns:
        The outcome, and whether it was interrupted.
    """
    schedule = engine.schedule
    if vectorised is None:
        vectorised = schedule.replicas > 1 and jax.default_backend() != "cpu"
    plan, found = remembered(build_plan, target, engine, key, chunk_steps, vectorised)
    data = eqx.filter((target, engine), is_data)
    everyone = np.arange(schedule.replicas, dtype=np.int32)
    workers = [
        _Worker(plan, schedule, data, key, number, chunk_steps is not None)
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

    def __init__(self, plan: _Plan, schedule, data, key, replica, fixed_chunks: bool):
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
        self.status: _Status | None = None

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
        self.pieces.append(jax.tree.map(lambda b: np.array(np.asarray(b)[rows]), buffers))
        self.state, self.status, self.at = state, status, self.at + made
        return made

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
    if vectorised:
        return _gather_vectorised(workers, schedule, seconds)
    records = [jax.tree.map(lambda *p: np.concatenate(p), *w.pieces) for w in workers]
    state = jax.tree.map(
        lambda *s: np.stack([_host(x) for x in s]), *[w.state for w in workers]
    )
    return Outcome(
        state,
        records,
        np.array([w.at for w in workers], dtype=int),
        [w.status.result for w in workers],
        np.array([w.finished for w in workers], dtype=bool),
        seconds,
    )


def _gather_vectorised(workers, schedule, seconds) -> Outcome:
    (worker,) = workers
    joined = jax.tree.map(lambda *p: np.concatenate(p, axis=1), *worker.pieces)
    take = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    replicas = range(schedule.replicas)
    steps = np.asarray(worker.status.stop, dtype=int)
    return Outcome(
        jax.tree.map(_host, worker.state),
        [jax.tree.map(lambda x: x[i, : steps[i]], joined) for i in replicas],
        steps,
        [take(worker.status.result, i) for i in replicas],
        (steps >= schedule.steps) | np.asarray(worker.status.done, dtype=bool),
        seconds,
    )


def _host(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jr.key_data(leaf))
    return np.asarray(leaf)
