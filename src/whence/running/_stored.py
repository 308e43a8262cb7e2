"""A run on disk: opened and checked, and read without running anything."""

from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ..core._begin import members
from ..core._convert import whole
from ..core._engine import AbstractEngine, AbstractProcedure
from ..core._flat import position_shapes
from ..core._json import from_json, to_json
from ..core._provenance import require_same
from ..core._require import require_target
from ..core._target import AbstractTarget
from ..core._types import PRNGKey
from ..posterior._posterior import Posterior
from ..storage import RunStore
from ._collect import collect, judge
from ._distributed import share
from ._job import check_run
from ._loop import Outcome
from ._manifest import key_from, open_store
from ._mesh import Layout, mesh as make_mesh, plan_layout
from ._program import shapes_of
from ._until import Until
from ._worker import read_chunks, restored


class Stored(NamedTuple):
    """A store and what was run.

    Attributes:
        store: The store.
        engine: The engine.
        key: Key of the run.
        start: Positions to begin at, if they were chosen.
    """

    store: RunStore
    engine: AbstractProcedure
    key: PRNGKey
    start: PyTree = None


def open_run(folder: str | Path, target: Any, engine: AbstractProcedure | None) -> Stored:
    """Open the store of a run on `target`."""
    store = open_store(folder)
    content = store.manifest
    require_same(target, content, f"the run in {folder}")
    if content["x64"] != bool(jax.config.jax_enable_x64):
        want = "float64 (`whence.enable_x64()`)" if content["x64"] else "float32"
        raise ValueError(f"The run in {folder} was made in {want}; switch to it first.")
    if engine is None:
        engine = _stored_engine(folder, content["configuration"])
    elif to_json(engine) != content["configuration"]:
        raise ValueError(f"`engine` must be the one of the run: {content['engine']}.")
    if not isinstance(engine, AbstractProcedure):
        raise ValueError(f"{folder} does not hold the configuration of an engine.")
    if isinstance(engine, AbstractEngine):
        require_target(target)
    check_run(target, engine)
    start = None
    if content.get("start"):
        start = restored(position_shapes(target), store.start(), members(engine.schedule))
    return Stored(store, engine, key_from(store), start)


def _stored_engine(folder: str | Path, configuration: Any) -> Any:
    try:
        return from_json(configuration)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"`engine` must be given: the run in {folder} does not hold all of it ({error}). "
            "Write `whence.resume(folder, target, engine=...)`."
        ) from None


def stored_layout(stored: Stored, target: Any, mesh: Mesh | None) -> tuple[Layout | None, bool]:
    """Return how a stored run goes on: what is divided, and whether chains are vmapped over."""
    begun = stored.store.manifest.get("mesh")
    if begun is None:
        if mesh is not None:
            raise ValueError(
                f"`mesh` must be left out: the run in {stored.store.folder} was begun without."
            )
        return None, bool(stored.store.manifest["vectorised"])
    layout = plan_layout(make_mesh(chain=1) if mesh is None else mesh, target, stored.engine)
    share(stored.store)
    return layout, bool(begun["vectorised"])


def stored_until(stored: Stored) -> Until:
    """Return the goal of a stored run that has one."""
    try:
        return Until(**stored.store.manifest["until"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The manifest of {stored.store.folder} is damaged: `until` is no goal ({error})."
        ) from error


def read_run(
    folder: str | Path,
    target: AbstractTarget,
    *,
    engine: AbstractEngine | None = None,
    thin: int = 1,
) -> Posterior:
    """Return the posterior of what a store holds; draws are read when they are asked for.

    Nothing is run or compiled, and nothing is written: the run may still be going on.

    Args:
        folder: The store.
        target: The target of the run.
        engine: The engine of the run, if it is not one of whence's own.
        thin: Keep every `thin`-th draw.

    Raises:
        ValueError: As for `resume`; if there are no draws yet; if `thin` does not apply.
    """
    stored = open_run(folder, target, engine)
    thin = whole("thin", least=1)(thin)
    own = _engine(stored)
    if thin > 1 and not own.schedule.extendable:
        raise ValueError(f"`thin` does not apply to {own.name}: its draws come at the end.")
    return posterior_of(stored, stored_outcome(stored, target), target, thin=thin)


def _engine(stored: Stored) -> AbstractEngine:
    if not isinstance(stored.engine, AbstractEngine):
        raise ValueError(
            f"The run in {stored.store.folder} is one of {stored.engine.name}, which makes no "
            "posterior; go on with `whence.resume`."
        )
    return stored.engine


def posterior_of(
    stored: Stored, outcome: Outcome, target: AbstractTarget, *, thin: int = 1
) -> Posterior:
    """Return the posterior of a stored run, to be read when it is asked for its draws."""
    store, engine, key = stored.store, _engine(stored), stored.key
    verdict = judge(outcome, engine, target, key, throw=False)
    return Posterior(
        target,
        partial(collect, outcome, engine, target, verdict.keep, key, thin=thin),
        engine=engine.name,
        manifest=store.manifest,
        failed=verdict.failed,
        complete=bool(store.manifest["complete"]),
        stopped=store.manifest["stopped"],
    )


def stored_outcome(stored: Stored, target: AbstractTarget) -> Outcome:
    """Return where a stored run stands."""
    store, engine, key = stored.store, _engine(stored), stored.key
    schedule = engine.schedule
    nothing = f"The run in {store.folder} has no draws yet; go on with `whence.resume`."
    empty, rest, info = shapes_of(target, engine, key)
    together = bool(store.manifest["vectorised"])
    found = {}
    for number in [0] if together else store.replicas():
        state = store.state(number)
        if state is not None and number < schedule.replicas:
            found[number] = state
    if not found:
        raise ValueError(nothing)
    lanes = (schedule.replicas,) if together else ()
    if together:
        stops, leaves = found[0]
        steps = np.asarray(stops, dtype=int)
    else:
        steps = np.array([int(stops) for stops, _ in found.values()])
        leaves = [np.stack(parts) for parts in zip(*(leaves for _, leaves in found.values()))]
    if schedule.steps > schedule.warmup and steps.max() <= schedule.warmup:
        raise ValueError(nothing)
    numbers = list(found)
    content = store.manifest
    open_end = content["until"] and not content["complete"]
    total = int(steps.max() if open_end else content["steps"])

    joined = cache(lambda: read_chunks(store, 0, info, lanes, int(steps.max())))

    def read(i):
        if not together:
            return read_chunks(store, numbers[i], info, (), int(steps[i]))
        return jax.tree.map(lambda x: x[i, : steps[i]], joined())

    result = lambda state: engine.result(eqx.combine(state, rest))
    results = jax.vmap(result)(restored(empty, leaves, len(steps)))
    return Outcome(
        eqx.combine(jax.tree.unflatten(jax.tree.structure(empty), leaves), rest),
        read,
        steps,
        [jax.tree.map(lambda x: x[i], results) for i in range(len(steps))],
        steps >= total,
        {},
        "finished",
        total,
    )
