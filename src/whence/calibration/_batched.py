"""Many data sets in one program: what suits accelerators, and engines without branches.

An engine on many data sets is a procedure, on a target that holds them all: its state is a
batch of states, its step a mapped step. So the loop runs it, like any other.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int, PyTree

from ..core._engine import (
    AbstractEngine,
    AbstractPausingProcedure,
    Info,
    Sample,
    Schedule,
    Trace,
    pause_each,
)
from ..core._results import RESULTS
from ..core._target import AbstractTarget


class BatchedTarget(AbstractTarget):
    """One target on many data sets."""

    target: Any  # the target, with any data
    data: dict[str, Array]  # observed variables by name, with a leading axis of data sets
    # a number for each data set, which its random numbers depend on
    numbers: Int[Array, " simulation"]

    def init(self, *, key):
        keys = jax.vmap(lambda number: jr.fold_in(key, number))(self.numbers)
        return jax.vmap(lambda key: self.target.init(key=key))(keys)

    def log_density(self, position):
        return jnp.sum(self.each(lambda t, x: t.log_density(x), position))

    def constrain(self, position):
        return jax.vmap(self.target.constrain)(position)

    def each(self, function, *batches):
        """Apply a function of one target, and of batches of more, to every data set."""
        one = lambda data, *rest: function(self.target.with_data(data), *rest)
        return jax.vmap(one)(self.data, *batches)


class BatchedFits(AbstractPausingProcedure):
    """An engine on every data set of a `BatchedTarget`."""

    engine: AbstractEngine

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def schedule(self) -> Schedule:
        return self.engine.schedule

    def validate(self, target: AbstractTarget) -> None:
        """Nothing: the engine was asked before."""

    def init(self, target: BatchedTarget, *, key) -> PyTree:
        make = lambda t, number: self.engine.init(t, key=jr.fold_in(key, number))
        return target.each(make, target.numbers)

    def step(
        self, target: BatchedTarget, state: PyTree, index: Array, *, key
    ) -> tuple[PyTree, Info]:
        def one(t, number, old):
            new, info = self.engine.step(t, old, index, key=jr.fold_in(key, number))
            done = self.engine.done(old)
            keep = lambda a, b: jnp.where(done, a, b)
            return jax.tree.map(keep, old, new), info, ~done

        state, info, active = target.each(one, target.numbers, state)
        return state, Info((info.position, active), info.stats)

    def pause(self, state: PyTree, index: int) -> PyTree:
        assert isinstance(self.engine, AbstractPausingProcedure)
        return pause_each(self.engine, state, index)

    def done(self, state: PyTree) -> Array:
        return jnp.all(jax.vmap(self.engine.done)(state))

    def result(self, state: PyTree) -> RESULTS:
        """Success: what became of each data set is told by `samples_of`."""
        return RESULTS.successful


def samples_of(
    target: BatchedTarget, engine: AbstractEngine, state: PyTree, trace: Trace, *, key
) -> list[Sample | str]:
    """Return the sample of each data set, or what went wrong there."""
    outcomes = jax.vmap(jax.vmap(engine.result))(jax.tree.map(jnp.asarray, state))
    found: list[Sample | str] = []
    for i in range(len(target.numbers)):
        failure = _failure(jax.tree.map(lambda x: x[:, i], outcomes))
        if failure:
            found.append(failure)
            continue
        own = target.target.with_data({n: value[i] for n, value in target.data.items()})
        mine = jax.tree.map(lambda x: x[:, i], state)
        parts = Trace(*(_part(part, i) for part in trace))
        number = jr.fold_in(key, target.numbers[i])
        found.append(engine.posterior(own, mine, parts, key=number))
    return found


def _part(info: Info | None, i: int) -> Info | None:
    """Return what was recorded for one data set before it was done, in all replicas."""
    if info is None:
        return None
    position, active = info.position
    length = int(active[:, :, i].sum(axis=1).min())
    take = lambda tree: jax.tree.map(lambda x: x[:, :length, i], tree)
    return Info(take(position), take(info.stats)) if length else None


def _failure(results: RESULTS) -> str:
    """Return what went wrong in the first replica that failed; empty if none did."""
    codes = np.asarray(results._value)
    bad = np.flatnonzero(codes != np.asarray(RESULTS.successful._value))
    if not len(bad):
        return ""
    return f"chain {bad[0]}: {RESULTS[jax.tree.map(lambda x: x[bad[0]], results)]}"
