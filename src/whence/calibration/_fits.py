"""A fit for each simulated data set: independent draws of every quantity, or a failure."""

import math
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..core._engine import AbstractEngine, Sample
from ..core._flat import flat_draws
from ..core._target import AbstractDescribedTarget, ReplacesData
from ..core._types import PRNGKey
from ..diagnostics import convergence
from ..diagnostics._stuck import stuck_chains
from ..posterior._posterior import Posterior
from ..running._collect import trace_of
from ..running._executor import run_all
from ..running._infer import InferenceError, InferenceWarning, infer
from ..running._job import RunOptions, prepare, run_job
from ..running._loop import cores
from ._batched import BatchedFits, BatchedTarget, samples_of
from ._generative import Functions, evaluate

NOT_FINITE = "the parameters or data simulated are not finite"
_BATCH = 256  # data sets in one program: bounds what a run records


class Fit(NamedTuple):
    """What is kept of one fit."""

    # draws of every quantity, thinned, `(draw, ...)`; empty if it failed
    draws: dict[str, np.ndarray]
    ess: float  # the smallest effective number of draws over quantities, before thinning
    divergent: int  # number of divergent transitions
    failure: str  # what went wrong; empty if nothing did
    stuck: bool = False  # whether a chain did not move, or hardly


class Task(NamedTuple):
    """What all fits share."""

    target: ReplacesData  # the target, with any data
    engine: AbstractEngine
    functions: Functions  # users' quantities
    most: int  # draws kept of every fit, at most
    least: int  # draws that every fit must have


def fit_all(
    task: Task,
    data: dict[str, np.ndarray],
    keys: list[PRNGKey],
    usable: np.ndarray,
    on_progress: Callable[[int, int], None] | None,
    executor: Executor | None = None,
) -> list[Fit]:
    """Fit every data set by itself, by default in threads that share one compiled program.

    On CPU that is faster than one program for all: trees of NUTS need not wait for the
    longest one. After Ctrl-C there are the fits of the first data sets.
    """
    calls = {
        int(i): (task, {name: value[i] for name, value in data.items()}, keys[i])
        for i in np.flatnonzero(usable)
    }
    fits = [_failed(NOT_FINITE) for _ in keys]
    if not calls:
        return fits
    with warnings.catch_warnings():
        # One warning for each fit would say less than the counts in the report.
        warnings.simplefilter("ignore", InferenceWarning)
        first = min(calls)
        fits[first] = _fit(*calls.pop(first))  # compiles what threads then share
        _check_enough(fits[first], task.least)
        pool = executor or ThreadPoolExecutor(cores(), thread_name_prefix="whence-sbc")
        told = on_progress and (lambda made, total: on_progress(made + 1, total + 1))
        try:
            found = run_all(pool, _fit, list(calls.values()), told, part=True)
        finally:
            if executor is None:
                pool.shutdown(cancel_futures=True)
    for i, fit in zip(calls, found):
        fits[i] = fit
    waiting = list(calls)[len(found) :]
    return fits[: waiting[0]] if waiting else fits


def fit_batched(
    task: Task, data: dict[str, np.ndarray], key: PRNGKey, usable: np.ndarray
) -> list[Fit]:
    """Fit all data sets in one program, in batches of `_BATCH`; after Ctrl-C the first ones."""
    good, fits = np.flatnonzero(usable), [_failed(NOT_FINITE) for _ in usable]
    size = min(_BATCH, len(good))
    for begin in range(0, len(good), max(size, 1)):
        # The last batch is filled up, so that all have the shape that is compiled.
        numbers = np.resize(good[begin : begin + size], size)
        some = {name: jnp.asarray(value[numbers]) for name, value in data.items()}
        stack = BatchedTarget(task.target, some, jnp.asarray(numbers, jnp.int32))
        job = prepare(stack, BatchedFits(task.engine), key, None, True, None, None, None)
        try:
            outcome, _ = run_job(job, RunOptions(False, True, None, None))
            interrupted = outcome.ending == "interrupted"
        except KeyboardInterrupt:  # before there were any draws
            interrupted = True
        if interrupted:
            return fits[: good[begin]]
        schedule = task.engine.schedule
        trace = trace_of(outcome, list(range(schedule.replicas)), schedule.warmup)
        samples = samples_of(stack, task.engine, outcome.state, trace, key=key)
        for i, found in zip(numbers, samples):
            own = {name: value[i] for name, value in data.items()}
            fits[i] = _failed(found) if isinstance(found, str) else _wrap(task, found, own, key)
        _check_enough(fits[numbers[0]], task.least)
    return fits


def _wrap(task: Task, sample: Sample, data: dict[str, Any], key: PRNGKey) -> Fit:
    target = task.target.with_data(data)
    return _keep(task, target, Posterior(target, sample, engine=task.engine.name), data, key)


def _check_enough(fit: Fit, least: int) -> None:
    """Raise if fits have too few draws: the first one shows it for all."""
    for value in fit.draws.values():
        if len(value) < least:
            raise ValueError(
                f"`num_draws` must be at most the draws of a fit, {len(value)}; got {least}."
            )


def _fit(task: Task, data: dict[str, Any], key: PRNGKey) -> Fit:
    target = task.target.with_data(data)
    try:
        posterior = infer(target, task.engine, key=key, progress=False, throw=False, threads=1)
    except InferenceError as error:
        return _failed(str(error))
    if not posterior.complete:  # Ctrl-C reached this process, or this thread
        raise KeyboardInterrupt
    if posterior.failed:
        return _failed(posterior.failed[0])
    return _keep(task, target, posterior, data, key)


def _keep(
    task: Task,
    target: AbstractDescribedTarget,
    posterior: Posterior,
    data: dict[str, Any],
    key: PRNGKey,
) -> Fit:
    """Thin a posterior to about independent draws of every quantity."""
    # Draws made independently need no estimate of how many they are worth.
    sample = posterior.sample
    independent = sample.method in ("exact", "variational")
    ess = float(posterior.num_chains * posterior.num_draws) if independent else math.nan
    if posterior.log_weights is not None:
        ess = _weight_ess(posterior)
        posterior = posterior.resample(task.most, key=jr.fold_in(key, 1))
    found = evaluate(target, posterior.sample.positions, data, task.functions)
    if any(not np.isfinite(value).all() for value in found.values()):
        return _failed("some draws, or quantities at them, are not finite")
    if math.isnan(ess):
        ess = _smallest_ess(found)
    draws = {name: _thin(_joined(value), task.most) for name, value in found.items()}
    diverging = posterior.stats.get("diverging")
    stuck = sample.method == "mcmc" and bool(stuck_chains(flat_draws(sample.positions)).any())
    return Fit(draws, ess, 0 if diverging is None else int(np.sum(diverging)), "", stuck)


def thin(draws: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Return `size` draws of every quantity, evenly spaced."""
    return {name: _thin(value, size) for name, value in draws.items()}


def _thin(draws: np.ndarray, size: int) -> np.ndarray:
    if len(draws) <= size:
        return draws
    return draws[((np.arange(size) + 0.5) * len(draws) / size).astype(int)]


def _joined(value: np.ndarray) -> np.ndarray:
    return value.reshape(-1, *value.shape[2:])


def _smallest_ess(found: dict[str, np.ndarray]) -> float:
    """Return the smallest bulk ESS over elements; values that never change limit nothing."""
    every = flat_draws(found)
    return float(np.nanmin(convergence(every).ess_bulk, initial=every[..., 0].size))


def _weight_ess(posterior: Posterior) -> float:
    """Return the effective number of weighted draws, copies counted once."""
    assert posterior.log_weights is not None
    weights = np.exp(posterior.log_weights - np.max(posterior.log_weights)).ravel()
    weights /= weights.sum()
    rows = next(iter(posterior.variables.values()))
    rows = np.ascontiguousarray(rows.reshape(weights.size, -1))
    _, which = np.unique(rows, axis=0, return_inverse=True)
    return float(1 / np.sum(np.bincount(which.ravel(), weights) ** 2))


def _failed(message: str) -> Fit:
    return Fit({}, np.nan, 0, message)
