"""A run of a procedure: what is run, how, and where it is written."""

import dataclasses
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from ..core._convert import flag, whole
from ..core._engine import AbstractProcedure
from ..core._require import require_key
from ..core._results import InferenceError
from ..core._stream import stream_of
from ..core._types import PRNGKey
from ..core._values import check_values
from ..storage import RunStore
from ._collect import Verdict, judge, so_far
from ._distributed import create_shared, is_first
from ._feed import require_slab
from ._loop import Outcome, run
from ._manifest import MOST, create_store, manifest
from ._mesh import Layout, plan_layout
from ._progress import progress_bar
from ._start import choose_start
from ._until import StoppingRule, Until


class Job(NamedTuple):
    """What is run: all of it goes into a store.

    Attributes:
        target: What the procedure works on.
        engine: The procedure.
        key: A typed key.
        until: When to end; None for after `steps`.
        steps: Steps in all; None for those of the schedule.
        store: Where it is written, or None.
        vectorised: Whether replicas run in one program.
        layout: What is divided over which devices.
        manifest: What is written down of it.
        start: Positions to begin at, along a leading axis; None for what the target says.
    """

    target: Any
    engine: AbstractProcedure
    key: PRNGKey
    until: Until | None
    steps: int | None
    store: RunStore | None
    vectorised: bool
    layout: Layout | None
    manifest: dict[str, Any]
    start: PyTree = None


class RunOptions(eqx.Module):
    """How it is run; nothing of it changes the draws. The arguments of `infer`."""

    progress: bool | None = eqx.field(converter=flag("progress", optional=True))
    throw: bool = eqx.field(converter=flag("throw"))
    chunk_steps: int | None = eqx.field(converter=whole("chunk_steps", least=1, optional=True))
    threads: int | None = eqx.field(converter=whole("threads", least=1, optional=True))


def prepare(
    target: Any,
    procedure: AbstractProcedure,
    key: PRNGKey,
    until: Until | None,
    vectorised: bool | None,
    store: str | Path | None,
    source: str | None,
    mesh: Mesh | None,
    start: Any = None,
) -> Job:
    """Return a new run, its store begun; the arguments are those of `infer`."""
    require_key(key)
    check_run(target, procedure)
    if procedure.schedule.sites and (mesh is None or store is not None):
        raise ValueError(
            f"{procedure.name} on rows that stay in {procedure.schedule.sites} processes needs "
            "a `mesh`, and has no `store`, which would be tied to the rows of one."
        )
    layout = None if mesh is None else plan_layout(mesh, target, procedure)
    flag("vectorised", optional=True)(vectorised)
    if source is not None and not isinstance(source, str):
        raise ValueError(f"`source` must be text, as 'model.py:target'; got {source!r}.")
    if vectorised is None:
        platform = jax.default_backend() if layout is None else layout.platform
        vectorised = procedure.schedule.replicas > 1 and platform != "cpu"
    begin, said = choose_start(target, procedure, start, key)
    opened = None
    if store is not None:
        more = {
            "vectorised": vectorised or layout is not None,
            "mesh": layout and layout.described(vectorised),
            "until": until and dataclasses.asdict(until),
            "source": source,
            **said,
        }
        create = lambda: create_store(store, target, procedure, key, more, begin)
        opened = create() if layout is None else create_shared(create, store)
    content = manifest(target, procedure, key) | said if opened is None else opened.manifest
    return Job(target, procedure, key, until, None, opened, vectorised, layout, content, begin)


def check_run(target: Any, procedure: AbstractProcedure) -> None:
    """Raise `ValueError` for what cannot be run, before anything is compiled."""
    check_values(target)
    schedule = procedure.schedule
    if stream_of(target) is not None and not schedule.rows_per_step:
        raise ValueError(
            f"{procedure.name} needs all rows of the data at every step, and those of a stream "
            "are never together. Take an engine of minibatches, as `SGLD(batch_size=100)`."
        )
    procedure.validate(target)
    require_slab(target, procedure)
    for name, number in (("replicas", schedule.replicas), ("steps", schedule.steps)):
        if number >= MOST:
            raise ValueError(
                f"{procedure.name} must have fewer than {MOST} {name} (chains, draws or "
                f"steps); got {number}."
            )


def run_job(
    job: Job, options: RunOptions, rule: StoppingRule | None = None
) -> tuple[Outcome, Verdict]:
    """Run a job through the loop, judge it, and write into its store how it ended."""
    engine: Any = job.engine

    def draws(outcome: Outcome):
        return lambda: so_far(outcome, engine, job.target, job.key)

    def go_on(outcome: Outcome) -> int | None:
        return rule.next(outcome.total, draws(outcome)) if rule else None

    try:
        outcome = _run(job, options, rule, go_on)
        verdict = judge(outcome, engine, job.target, job.key, throw=options.throw)
        if rule and outcome.ending == "time over":
            steps = min(int(outcome.steps[i]) for i in verdict.keep)
            rule.time_over(steps, draws(outcome))
            outcome = outcome._replace(total=steps)
        _write_ending(job, outcome, rule)
    finally:
        if job.store is not None:
            job.store.release()
    return outcome, verdict


def _run(job: Job, options: RunOptions, rule, go_on) -> Outcome:
    """Run a job through the loop, with a progress bar."""
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
                start=job.start,
            )
        except TimeoutError as error:
            raise InferenceError(f"{job.engine.name}: {error}") from None


def _write_ending(job: Job, outcome: Outcome, rule: StoppingRule | None) -> None:
    """Write into the store, if there is one, how the run ended."""
    if job.store is None:
        return
    store, before = job.store, dict(job.store.manifest)
    ended = outcome.ending != "interrupted"
    store.manifest["complete"] = bool(outcome.finished.all() or rule) and ended
    if rule and ended:
        store.manifest |= {"steps": outcome.total, "stopped": rule.stopped}
    if store.manifest != before:  # a complete run may lie in a folder that is only read
        store.write_manifest()


def seconds_of(outcome: Outcome, begin: float) -> dict[str, float]:
    """Return the durations of a run that began at a moment of `time.perf_counter`."""
    return {**outcome.seconds, "total": time.perf_counter() - begin}
