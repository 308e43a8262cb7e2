"""`infer()`: a target and an engine become a `Posterior`."""

import dataclasses
import sys
import time
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from ..core._engine import AbstractEngine
from ..core._require import check_values, require_engine, require_key, require_target
from ..core._results import (
    InferenceError as InferenceError,
    InferenceWarning as InferenceWarning,
)
from ..core._target import AbstractTarget
from ..core._types import PRNGKey
from ..posterior._posterior import Posterior
from ..storage import RunStore
from ._collect import collect, judge, so_far
from ._distributed import create_shared, is_first
from ._loop import Outcome, run
from ._manifest import create_store, manifest
from ._mesh import Layout, plan_layout
from ._progress import progress_bar
from ._until import StoppingRule, Until

LOOK_BYTES = 2**28  # a stored run larger than this is not read only to warn of trouble


def infer(
    target: AbstractTarget,
    engine: AbstractEngine,
    *,
    key: PRNGKey,
    until: Until | None = None,
    progress: bool | None = None,
    throw: bool = True,
    chunk_steps: int | None = None,
    vectorised: bool | None = None,
    threads: int | None = None,
    store: str | Path | None = None,
    source: str | None = None,
    mesh: Mesh | None = None,
) -> Posterior:
    """Run an engine on a target.

    Args:
        target: What to sample, for example `whence.condition(model, y)`.
        engine: How, for example `whence.NUTS()`.
        key: A typed key, as `jax.random.key` makes. Same key, same draws.
        until: When to end, for example `whence.Until(ess=1000, rhat=1.01)`; then the
            engine's own number of draws does not count. By default the engine's draws.
        progress: Show a progress bar; by default if standard error is a terminal.
        throw: Raise if the run failed; otherwise only record it in the posterior.
        chunk_steps: Steps per call of the compiled program, between which progress is
            shown and Ctrl-C heeded; by default about a quarter of a second's worth. It
            does not change the draws.
        vectorised: Run chains in one vmapped program, as is best on accelerators, or each
            by itself; by default by the platform.
        threads: Threads for chains that run by themselves; by default one per core.
        store: A new or empty folder to which every chunk is written, so that a run that
            is killed loses a fraction of a second and `resume` goes on from there. The
            draws are then read from it when they are asked for.
        source: Where the target comes from, as `model.py:target`; kept in the store, so
            that the command line needs only the folder.
        mesh: Devices to divide chains, rows of the data or particles over, as
            `whence.mesh` makes.

    Returns:
        The posterior. After Ctrl-C it holds the draws so far and is marked incomplete.

    Raises:
        ValueError: If an argument is wrong; before anything is compiled.
        InferenceError: If the run failed and `throw` is set, or time was over before
            there were any draws.
        OSError: If the store cannot be written; what is in it can be resumed.
        KeyboardInterrupt: If Ctrl-C came before there were any draws.
    """
    _check_arguments(target, engine, key, chunk_steps, threads)
    _check_until(until, engine)
    check_values(target)
    engine.validate(target)
    layout = None if mesh is None else plan_layout(mesh, target, engine)
    if vectorised is None:
        platform = jax.default_backend() if layout is None else layout.platform
        vectorised = engine.schedule.replicas > 1 and platform != "cpu"
    opened = None
    if store is not None:
        more = {
            "vectorised": vectorised or layout is not None,
            "mesh": layout and layout.described(vectorised),
            "until": until and dataclasses.asdict(until),
            "source": source,
        }
        create = lambda: create_store(store, target, engine, key, more)
        opened = create() if layout is None else create_shared(create, store)
    job = Job(target, engine, key, until, None, opened, vectorised, layout)
    return fit(job, RunOptions(progress, throw, chunk_steps, threads))


class Job(NamedTuple):
    """What is run: all of it goes into a store.

    Attributes:
        target: The target density.
        engine: The engine.
        key: A typed key.
        until: When to end; None for after `steps`.
        steps: Steps in all; None for those of the engine's schedule.
        store: Where it is written, or None.
        vectorised: Whether replicas run in one program.
        layout: What is divided over which devices.
    """

    target: AbstractTarget
    engine: AbstractEngine
    key: PRNGKey
    until: Until | None
    steps: int | None
    store: RunStore | None
    vectorised: bool
    layout: Layout | None = None


class RunOptions(NamedTuple):
    """How it is run; nothing of it changes the draws. The arguments of `infer`."""

    progress: bool | None
    throw: bool
    chunk_steps: int | None
    threads: int | None


def fit(job: Job, options: RunOptions) -> Posterior:
    """Run, judge and collect; what `infer`, `resume` and `extend` share."""
    begin = time.perf_counter()
    rule = StoppingRule(job.until, job.engine) if job.until else None
    outcome = _run(job, options, rule)
    verdict = judge(outcome, job.engine, job.target, job.key, throw=options.throw)
    if rule and outcome.ending == "time over":
        steps = min(int(outcome.steps[i]) for i in verdict.keep)
        rule.time_over(steps, _draws(job, outcome))
        outcome = outcome._replace(total=steps)
    interrupted = outcome.ending == "interrupted"
    sample = partial(collect, outcome, job.engine, job.target, verdict.keep, job.key)
    if job.store is not None:
        _write_ending(job.store, outcome, rule)
    posterior = Posterior(
        job.target,
        sample if job.store is not None else sample(),
        engine=job.engine.name,
        seconds={**outcome.seconds, "total": time.perf_counter() - begin},
        manifest=manifest(job.target, job.engine, job.key),
        failed=verdict.failed,
        complete=not interrupted,
        stopped=rule.stopped if rule else None,
    )
    _warn(posterior, interrupted, rule, job.store)
    return posterior


def _run(job: Job, options: RunOptions, rule: StoppingRule | None) -> Outcome:
    def go_on(outcome: Outcome) -> int | None:
        return rule.next(outcome.total, _draws(job, outcome)) if rule else None

    wanted = sys.stderr.isatty() if options.progress is None else options.progress
    wanted = wanted and (job.layout is None or is_first())
    with progress_bar(job.engine.name) if wanted else nullcontext() as on_progress:
        try:
            return run(
                job.target,
                job.engine,
                key=job.key,
                steps=rule.first() if rule else job.steps,
                go_on=go_on,
                deadline=rule.deadline if rule else None,
                on_progress=on_progress,
                chunk_steps=options.chunk_steps,
                vectorised=job.vectorised,
                threads=options.threads,
                store=job.store,
                layout=job.layout,
            )
        except TimeoutError as error:
            raise InferenceError(f"{job.engine.name}: {error}") from None


def _draws(job: Job, outcome: Outcome):
    return lambda: so_far(outcome, job.engine, job.target, job.key)


def _write_ending(store: RunStore, outcome: Outcome, rule: StoppingRule | None) -> None:
    before = dict(store.manifest)
    ended = outcome.ending != "interrupted"
    store.manifest["complete"] = bool(outcome.finished.all() or rule) and ended
    if rule and ended:
        store.manifest |= {"steps": outcome.total, "stopped": rule.stopped}
    if store.manifest != before:  # a complete run may lie in a folder that is only read
        store.write_manifest()


def _check_until(until, engine):
    if until is None:
        return
    if not isinstance(until, Until):
        raise ValueError(
            f"`until` must be a `whence.Until`, as `Until(ess=1000)`; got {until!r}."
        )
    if not engine.schedule.extendable:
        raise ValueError(
            f"`until` needs an engine that makes draw after draw, such as NUTS; {engine.name} "
            "ends by itself."
        )


def _check_arguments(target, engine, key, chunk_steps, threads):
    require_target(target)
    require_engine(engine)
    require_key(key)
    for name, value in {"chunk_steps": chunk_steps, "threads": threads}.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}.")


def _warn(posterior: Posterior, interrupted: bool, rule, store) -> None:
    for message in posterior.failed:
        _say(f"Dropped {message}")
    if interrupted:
        _say(f"Interrupted: the posterior holds {posterior.num_draws} draws per chain.")
    if rule and rule.stopped and not rule.reached:
        _say(f"The goal of `until` was not reached. {rule.stopped}")
    if store is not None and store.num_bytes() > LOOK_BYTES:
        return  # reading it would undo what the store is for; `diagnose` does when asked
    try:
        trouble = posterior.trouble()
    except KeyboardInterrupt:  # must not cost the draws
        trouble = "Interrupted after the run, before its draws were looked at."
    if trouble:
        _say(f"{trouble} Print `posterior.diagnose()` for what to do.")


def _say(text: str) -> None:
    warnings.warn(text, InferenceWarning, stacklevel=5)
