"""`train()`: a procedure that ends in a state, run through the same loop."""

import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ..core._engine import AbstractProcedure
from ..core._key import as_key
from ..core._results import InferenceWarning
from ..core._types import AnyArray, PRNGKey
from ._collect import take_replicas, trace_of
from ._job import Job, RunOptions, prepare, run_job, seconds_of


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `train` returns.

    Attributes:
        state: The final state; with several replicas, arrays have a leading axis for them.
        stats: What the steps recorded, by name, `(replica, step, ...)`.
        seconds: Durations: `trace`, `compile`, `warmup`, `sampling`, `total`, in seconds.
        manifest: Versions, key, configuration and data hash.
        failed: What became of replicas that were dropped, one sentence each.
        complete: False if Ctrl-C stopped the run.
    """

    state: PyTree
    stats: dict[str, AnyArray]
    seconds: dict[str, float]
    manifest: dict[str, Any]
    failed: tuple[str, ...]
    complete: bool


def train(
    problem: PyTree,
    procedure: AbstractProcedure,
    *,
    key: PRNGKey | int,
    progress: bool | None = None,
    throw: bool = True,
    chunk_steps: int | None = None,
    vectorised: bool | None = None,
    threads: int | None = None,
    store: str | Path | None = None,
    source: str | None = None,
    mesh: Mesh | None = None,
) -> Trained:
    """Run a procedure, such as the training of a network, to its end.

    It runs as an engine does: in compiled chunks, with progress, Ctrl-C, a store to resume
    from (`whence.resume(store, problem)`) and a mesh.

    Args:
        problem: What the procedure works on: a pytree whose arrays are data.
        procedure: What to run.
        key: A typed key, as `jax.random.key` makes, or a whole number. Same key, same state.
        progress: As for `infer`.
        throw: As for `infer`.
        chunk_steps: As for `infer`.
        vectorised: As for `infer`.
        threads: As for `infer`.
        store: As for `infer`.
        source: As for `infer`.
        mesh: As for `infer`.

    Returns:
        The final state, and what the steps recorded.

    Raises:
        ValueError: If an argument is wrong; before anything is compiled.
        InferenceError: If the run failed and `throw` is set.
        OSError: If the store cannot be written; what is in it can be resumed.
    """
    if not isinstance(procedure, AbstractProcedure):
        raise ValueError(f"`procedure` must be a whence procedure; got {procedure!r}.")
    options = RunOptions(progress, throw, chunk_steps, threads)
    job = prepare(problem, procedure, as_key(key), None, vectorised, store, source, mesh)
    return finish(job, options)


def finish(job: Job, options: RunOptions) -> Trained:
    """Run a job of a procedure that makes no sample; what `train` and `resume` share."""
    begin = time.perf_counter()
    outcome, verdict = run_job(job, options)
    complete = outcome.ending != "interrupted"
    for message in verdict.told():
        warnings.warn(message, InferenceWarning, stacklevel=3)
    if not complete:
        warnings.warn("Interrupted: the state is that of the last step.", InferenceWarning, 3)
    state = take_replicas(outcome.state, verdict.keep)
    if job.engine.schedule.replicas == 1:
        state = jax.tree.map(lambda x: x[0] if isinstance(x, np.ndarray) else x, state)
    recorded = trace_of(outcome, verdict.keep, warmup=0).sampling
    return Trained(
        state,
        {} if recorded is None else recorded.stats,
        seconds_of(outcome, begin),
        job.manifest,
        verdict.failed,
        complete,
    )
