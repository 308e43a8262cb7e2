"""`infer()`: a target and an engine become a `Posterior`."""

import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ..core._engine import AbstractEngine, AbstractProcedure
from ..core._key import as_key
from ..core._require import require_engine, require_target
from ..core._results import InferenceError as InferenceError, InferenceWarning
from ..core._target import AbstractTarget
from ..core._types import PRNGKey
from ..posterior._posterior import Posterior
from ._collect import collect
from ._job import Job, RunOptions, prepare, run_job, seconds_of
from ._until import StoppingRule, Until

LOOK_BYTES = 2**28  # a stored run larger than this is not read only to warn of trouble


def infer(
    target: AbstractTarget,
    engine: AbstractEngine,
    *,
    key: PRNGKey | int,
    start: Any = None,
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
        key: A typed key, as `jax.random.key` makes, or a whole number for that of it, as
            wherever there is a `key`. Same key, same draws.
        start: Where to begin: values by name, as `{"mu": 0.0}`, of all latents or of some (the
            others begin where they would), or one such dict for each chain; a posterior, whose
            draws are begun at, one for each chain, chosen by the key; or `"prior"` for draws
            from the prior. By default what the target says (`wh.latent(start=)`).
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
    require_target(target)
    require_engine(engine)
    check_until(until, engine)
    options = RunOptions(progress, throw, chunk_steps, threads)
    job = prepare(target, engine, as_key(key), until, vectorised, store, source, mesh, start)
    return fit(job, options)


def fit(job: Job, options: RunOptions) -> Posterior:
    """Run, judge and collect; what `infer`, `resume` and `extend` share."""
    begin, engine = time.perf_counter(), job.engine
    assert isinstance(engine, AbstractEngine)
    rule = StoppingRule(job.until, engine) if job.until else None
    outcome, verdict = run_job(job, options, rule)
    interrupted = outcome.ending == "interrupted"
    sample = partial(collect, outcome, engine, job.target, verdict.keep, job.key)
    posterior = Posterior(
        job.target,
        sample if job.store is not None else sample(),
        engine=engine.name,
        seconds=seconds_of(outcome, begin),
        manifest=job.manifest,
        failed=verdict.failed,
        complete=not interrupted,
        stopped=rule.stopped if rule else None,
    )
    _warn(posterior, verdict, interrupted, rule, job.store)
    return posterior


def check_until(until: Any, engine: AbstractProcedure) -> None:
    """Raise `ValueError` unless a run of the engine may end by `until`."""
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


def _warn(posterior: Posterior, verdict, interrupted: bool, rule, store) -> None:
    for message in verdict.told():
        _say(message)
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
