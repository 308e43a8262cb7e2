"""`resume()` and `extend()`: a stored run goes on, bit for bit."""

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ..core._convert import whole
from ..core._engine import AbstractEngine, AbstractProcedure
from ..core._target import AbstractTarget
from ..posterior._posterior import Posterior
from ._distributed import locked
from ._infer import check_until, fit
from ._job import Job, RunOptions
from ._stored import open_run, stored_layout, stored_until
from ._train import finish
from ._until import Until


def resume(
    folder: str | Path,
    target: Any,
    *,
    engine: AbstractProcedure | None = None,
    progress: bool | None = None,
    throw: bool = True,
    chunk_steps: int | None = None,
    threads: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Go on with a run that `infer` or `train` began with `store=folder`.

    In this or another process.

    On the same platform the draws equal those of an uninterrupted run bit for bit. A run
    that is complete is read and returned. A run with `until` goes on towards its goal, with
    a new clock.

    Args:
        folder: The store.
        target: The target of the run; its data must be the same.
        engine: The engine or procedure of the run, if it is not one of whence's own, or has
            parts that cannot be stored, such as an optax optimiser.
        progress: As for `infer`.
        throw: As for `infer`.
        chunk_steps: As for `infer`; it does not change the draws.
        threads: As for `infer`.
        mesh: Devices, if the run was begun with a mesh; by default one.

    Returns:
        The `Posterior` of the whole run; of `train`, what that returns (`Trained`).

    Raises:
        ValueError: If the folder is no store, a file in it is damaged, or target, engine
            or precision are not those of the run.
        BlockingIOError: If another process is writing to the store.
    """
    options = RunOptions(progress, throw, chunk_steps, threads)
    stored = open_run(folder, target, engine)
    layout = stored_layout(stored, target, mesh)
    content = stored.store.manifest
    wanted = 1 if content["vectorised"] else stored.engine.schedule.replicas
    lacking = len(stored.store.replicas()) < wanted  # somebody has removed a folder
    stored.store.read_only |= content["complete"] and not lacking
    until = None if content["complete"] or not content["until"] else stored_until(stored)
    return _go_on(stored, target, until, layout, options, {})


def extend(
    folder: str | Path,
    target: AbstractTarget,
    *,
    draws: int | None = None,
    until: Until | None = None,
    engine: AbstractEngine | None = None,
    progress: bool | None = None,
    throw: bool = True,
    chunk_steps: int | None = None,
    threads: int | None = None,
    mesh: Mesh | None = None,
) -> Posterior:
    """Add draws to the end of a stored run.

    The result equals, bit for bit on the same platform, a run that made so many draws from
    the start. A run that was stopped before its end first makes the draws it lacks.

    Args:
        folder: The store.
        target: The target of the run; its data must be the same.
        draws: How many more draws per chain.
        until: Or, when to end; all draws of the run count, `max_draws` too.
        engine: The engine of the run, if it is not one of whence's own.
        progress: As for `infer`.
        throw: As for `infer`.
        chunk_steps: As for `infer`; it does not change the draws.
        threads: As for `infer`.
        mesh: As for `resume`.

    Returns:
        The posterior of the whole run, earlier draws included.

    Raises:
        ValueError: If neither or both of `draws` and `until` are given, if the engine makes
            its draws only at its end, or for what `resume` refuses.
        BlockingIOError: If another process is writing to the store.
    """
    options = RunOptions(progress, throw, chunk_steps, threads)
    stored = open_run(folder, target, engine)
    if (draws is None) == (until is None):
        raise ValueError("`extend` must be given either `draws` or `until`.")
    draws = whole("draws", least=1, optional=True)(draws)
    check_until(until, stored.engine)
    if not stored.engine.schedule.extendable:
        raise ValueError(
            f"The run in {folder} cannot be extended: {stored.engine.name} ends by itself. "
            "Start a longer run."
        )
    layout = stored_layout(stored, target, mesh)
    steps = stored.store.manifest["steps"] + (draws or 0)
    goal = until and dataclasses.asdict(until)
    changes = {"complete": False, "stopped": None, "until": goal, "steps": steps}
    return _go_on(stored, target, until, layout, options, changes)


def _go_on(stored, target, until, plan, options, changes) -> Any:
    store, engine, key, start = stored
    (layout, vectorised), content = plan, store.manifest
    with locked(store, layout):
        if changes:
            content |= changes
            store.write_manifest()
        steps = int(content["steps"])
        job = Job(target, engine, key, until, steps, store, vectorised, layout, content, start)
        if not isinstance(engine, AbstractEngine):
            return finish(job, options)
        posterior = fit(job, options)
    posterior.stopped = content["stopped"]
    return posterior
