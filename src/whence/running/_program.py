"""A run as one compiled program: from any step to any other.

The program makes the state, steps, and writes what steps record into a buffer. Where it
starts and stops are arguments, so one compilation serves warm-up, sampling, every chunk
length and every resumption.
"""

import math
import time
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from ..core._begin import beginning
from ..core._cache import Program, compile_now, is_data
from ..core._engine import Info, split_state
from ..core._tree import named_leaves
from ..storage._encoding import memory
from ._sharding import gathered, keep, place, spread

CHUNK_BYTES = 2**25  # at most this much recorded data per call and replica
CHUNK_STEPS = 1024


class Status(NamedTuple):
    stop: Any  # first step not made
    done: Any
    result: Any


def chunk(plan, data, state, key, replica, start, stop):
    """Advance one replica from `start` to at most `stop`: the compiled program.

    The first chunk (`start == 0`) makes the state; the one it is given is a placeholder.

    Args:
        plan: The `_Shapes` of this run: pure functions and the shapes of what they return.
        data: Array leaves of the target, the engine and the start.
        state: State after step `start - 1`.
        key: Key of the run.
        replica: Number of this replica.
        start: First step to make.
        stop: First step not to make.

    Returns:
        The new state, the recorded steps, and a `Status`.
    """
    init_key, step_key = jr.split(jr.fold_in(key, replica))
    state = jax.lax.cond(start == 0, lambda: plan.init(data, replica, init_key), lambda: state)
    buffers = jax.tree.map(lambda s: zeros((plan.length, *s.shape), s.dtype), plan.info)

    def cond(carry):
        index, state, _ = carry
        return (index < stop) & ~plan.fate(data, state)[0]

    def body(carry):
        index, state, buffers = carry
        key = jr.fold_in(step_key, index)
        state, info = plan.step(data, replica, state, index, key)
        write = lambda b, x: jax.lax.dynamic_update_index_in_dim(b, x, index - start, 0)
        return index + 1, state, jax.tree.map(write, buffers, info)

    index, state, buffers = jax.lax.while_loop(cond, body, (start, state, buffers))
    return state, buffers, Status(index, *plan.fate(data, state))


class _Shapes(NamedTuple):
    """Pure functions of an engine on a target, and the shapes of state and info."""

    init: Any
    step: Any
    fate: Any  # whether it is done, and how it fares
    state: PyTree
    info: PyTree
    length: int


class Plan(NamedTuple):
    """A compiled run, without its data."""

    program: Program
    state: PyTree  # placeholder for the arrays of a state
    rest: PyTree  # what in a state is no array, and the same in all
    info: PyTree  # shapes
    length: int  # most steps that one call records


def build_plan(target, engine, key, chunk_steps, vectorised, layout=None, start=None) -> Plan:
    """Trace and compile `chunk` for a target and an engine of this structure.

    `init` and `step` are wrapped in `jit`, which traces each once however often it is used
    here, and are inlined into the one program.
    """
    begin = time.perf_counter()
    data, static = eqx.partition((target, engine, start), is_data)
    rest, schedule = None, engine.schedule

    @partial(jax.jit, inline=True)
    def init(data, replica, key):
        nonlocal rest
        target, engine, start = eqx.combine(data, static)
        with beginning(start, replica, schedule):
            state, rest = split_state(engine.init(target, key=key))
        return keep(layout, state)

    @partial(jax.jit, inline=True)
    def step(data, replica, state, index, key):
        target, engine, start = eqx.combine(data, static)
        with beginning(start, replica, schedule):
            state, info = engine.step(target, eqx.combine(state, rest), index, key=key)
        state, other = split_state(state)
        if not eqx.tree_equal(rest, other):
            raise ValueError(f"`step` of {engine.name} must leave what is no array as it is.")
        return keep(layout, state), info

    def fate(data, state):
        engine, state = eqx.combine(data, static)[1], eqx.combine(state, rest)
        return engine.done(state), engine.result(state)

    index = jax.ShapeDtypeStruct((), np.int32)
    state = jax.eval_shape(init, data, index, key)
    begun = state
    state, info = jax.eval_shape(step, data, index, state, index, key)
    _check_step(engine, begun, state, info)
    replicas = schedule.replicas
    needed, there = bytes_of(state, replicas), memory()
    if needed > there:
        raise ValueError(
            f"{engine.name} must fit into memory: the states of its {replicas} replicas "
            f"(chains) take {needed:.3g} bytes, and there are {there:.3g}."
        )
    together = vectorised or layout is not None
    lanes = layout.lanes if layout is not None else replicas if vectorised else 1
    length = _buffer_steps(info, schedule, chunk_steps, lanes)
    shapes = _Shapes(init, step, fate, state, info, length)
    begin = time.perf_counter() - begin
    every = partial(chunk, shapes)
    if layout is not None:
        every = spread(every, layout, vectorised)
    elif vectorised:
        # `start` and `stop` are not mapped over: branches on the step index stay branches.
        every = jax.vmap(every, in_axes=(None, 0, None, 0, None, None))

    def whence_chunk(*args):
        return every(*args)

    lead = (replicas,) if together else ()
    empty = jax.tree.map(lambda s: placeholder((*lead, *s.shape), s.dtype), state)
    number = np.arange(replicas, dtype=np.int32) if together else np.int32(0)
    args = (data, empty, key, number, np.int32(0), np.int32(0))
    put = partial(place, layout) if layout is not None else lambda *args: args
    program = compile_now(whence_chunk, *put(*args))
    run = program.call
    program = program._replace(
        call=lambda *args: run(*put(*args)), trace_seconds=program.trace_seconds + begin
    )
    return Plan(program, empty, rest, info, length)


def shapes_of(target, engine, key) -> tuple[PyTree, PyTree, PyTree]:
    """Return shapes and types of a state, what in it is no array, and those of `Info`."""
    init = lambda target, key: engine.init(target, key=key)
    step = lambda target, state, index, key: engine.step(target, state, index, key=key)
    index = jax.ShapeDtypeStruct((), np.int32)
    state = eqx.filter_eval_shape(init, target, key)
    state, info = eqx.filter_eval_shape(step, target, state, index, key)
    arrays, rest = eqx.partition(state, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    return arrays, rest, info


def _check_step(engine, begun: PyTree, state: PyTree, info: Any) -> None:
    """Raise `ValueError` unless a step returns a state like that of `init`, and an `Info`."""
    if not isinstance(info, Info):
        raise ValueError(
            f"`step` of {engine.name} must return a state and an `Info`; got a "
            f"{type(info).__name__} for the latter."
        )
    old, new = named_leaves(begun), named_leaves(state)
    for name in old | new:
        a, b = (str(x[name]) if name in x else "nothing" for x in (old, new))
        if a != b:
            raise ValueError(
                f"`step` of {engine.name} must return a state like that of `init`, where leaf "
                f"`{name}` is {a}; got {b}."
            )


def _buffer_steps(info, schedule, chunk_steps, lanes) -> int:
    if chunk_steps is not None:
        return max(1, min(chunk_steps, schedule.steps))
    size = bytes_of(info, lanes)
    most = max(1, min(CHUNK_STEPS, schedule.steps))
    return int(np.clip(CHUNK_BYTES // max(size, 1), 1, most))


def bytes_of(shapes: PyTree, *axes: int) -> int:
    """Return how many bytes arrays of these shapes take, with these axes before them."""
    leaves = jax.tree.leaves(shapes)
    return sum(math.prod((*axes, *s.shape)) * s.dtype.itemsize for s in leaves)


def placeholder(shape, dtype):
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return zeros(shape, dtype)
    return np.zeros(shape, dtype)


def zeros(shape, dtype):
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            jnp.zeros((*shape, *jr.key_data(jr.key(0)).shape), dtype=jnp.uint32)
        )
    return jnp.zeros(shape, dtype)


def to_state(array, like):
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jr.wrap_key_data(jnp.asarray(array), impl=jr.key_impl(like))
    return array


def to_host(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return to_host(jr.key_data(leaf))
    return np.asarray(gathered(leaf))
