"""`resume()` and `extend()`: a stored run goes on, bit for bit."""

from pathlib import Path

from jax.sharding import Mesh

from ..core._engine import AbstractEngine
from ..core._target import AbstractTarget
from ..posterior._posterior import Posterior
from ._infer import Job, RunOptions, fit
from ._stored import open_run, stored_layout
from ._until import Until


def resume(
    folder: str | Path,
    target: AbstractTarget,
    *,
    engine: AbstractEngine | None = None,
    progress: bool | None = None,
    throw: bool = True,
    chunk_steps: int | None = None,
    threads: int | None = None,
    mesh: Mesh | None = None,
) -> Posterior:
    """Go on with a run that `infer(..., store=folder)` began, in this or another process.

    On the same platform the draws equal those of an uninterrupted run bit for bit. A run
    that is complete is read and returned. A run with `until` goes on towards its goal, with
    a new clock.

    Args:
        folder: The store.
        target: The target of the run; its data must be the same.
        engine: The engine of the run, if it is not one of whence's own.
        progress: As for `infer`.
        throw: As for `infer`.
        chunk_steps: As for `infer`; it does not change the draws.
        threads: As for `infer`.
        mesh: Devices, if the run was begun with a mesh; by default one.

    Returns:
        The posterior of the whole run.

    Raises:
        ValueError: If the folder is no store, a file in it is damaged, or target, engine
            or precision are not those of the run.
    """
    stored = open_run(folder, target, engine)
    layout = stored_layout(stored, target, mesh)
    content = stored.store.manifest
    until = None if content["complete"] or not content["until"] else Until(**content["until"])
    return _go_on(
        stored, target, until, layout, RunOptions(progress, throw, chunk_steps, threads)
    )


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
    """
    stored = open_run(folder, target, engine)
    if (draws is None) == (until is None):
        raise ValueError("`extend` must be given either `draws` or `until`.")
    if draws is not None and draws < 1:
        raise ValueError(f"`draws` must be at least 1; got {draws}.")
    if not stored.engine.schedule.extendable:
        raise ValueError(
            f"The run in {folder} cannot be extended: {stored.engine.name} ends by itself. "
            "Start a longer run."
        )
    layout = stored_layout(stored, target, mesh)
    content = stored.store.manifest
    content |= {"complete": False, "stopped": None, "until": until and vars(until)}
    content["steps"] += draws or 0
    stored.store.write_manifest()
    return _go_on(
        stored, target, until, layout, RunOptions(progress, throw, chunk_steps, threads)
    )


def _go_on(stored, target, until, layout, options) -> Posterior:
    content = stored.store.manifest
    steps, (layout, vectorised) = int(content["steps"]), layout
    job = Job(target, stored.engine, stored.key, until, steps, stored.store, vectorised, layout)
    posterior = fit(job, options)
    posterior.stopped = content["stopped"]
    return posterior
