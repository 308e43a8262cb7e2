"""`infer()`: a target and an engine become a `Posterior`."""

import hashlib
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ._check import check, check_values, require_target
from ._engine import AbstractEngine, Trace
from ._loop import Outcome, run
from ._manifest import create_store, manifest
from ._posterior import Posterior
from ._progress import progress_bar
from ._results import RESULTS
from ._target import AbstractTarget
from ._types import PRNGKey


class InferenceError(RuntimeError):
    """A run failed; the message says what happened and what to do."""


class InferenceWarning(UserWarning):
    """A run went on, but what it returned needs a look."""


def infer(
    target: AbstractTarget,
    engine: AbstractEngine,
    *,
    key: PRNGKey,
    progress: bool | None = None,
    throw: bool = True,
    chunk_steps: int | None = None,
    vectorised: bool | None = None,
    threads: int | None = None,
    store: str | Path | None = None,
) -> Posterior:
    """Run an engine on a target.

    Args:
        target: What to sample, for example `whence.condition(model, y)`.
        engine: How, for example `whence.NUTS()`.
        key: A typed key, as `jax.random.key` makes. Same key, same draws.
        progress: Show a progress bar; by default if standard error is a terminal.
        throw: Raise if the run failed; otherwise only record it in the posterior.
        chunk_steps: Steps per call of the compiled program, between which progress is
            shown and Ctrl-C heeded; by default about a quarter of a second's worth. It
            does not change the draws.
        vectorised: Run chains in one vmapped program, as is best on accelerators, or each
            by itself; by default by the platform.
        threads: Threads for chains that run by themselves; by default one per core.
        store: A new or empty folder to which every chunk is written, so that a run that
            is killed loses a fraction of a second and `resume` goes on from there.

    Returns:
        The posterior. After Ctrl-C it holds the draws so far and is marked incomplete.

    Raises:
        ValueError: If an argument is wrong; before anything is compiled.
        InferenceError: If the run failed and `throw` is set.
        KeyboardInterrupt: If Ctrl-C came before there were any draws.
    """
    _check_arguments(target, engine, key, chunk_steps, threads)
    check_values(target)
    engine.validate(target)
    if vectorised is None:
        vectorised = engine.schedule.replicas > 1 and jax.default_backend() != "cpu"
    opened = None
    if store is not None:
        opened = create_store(store, target, engine, key, vectorised)
    return fit(target, engine, key, progress, throw, chunk_steps, vectorised, threads, opened)


def fit(
    target, engine, key, progress, throw, chunk_steps, vectorised, threads, store
) -> Posterior:
    """Run, judge and collect; what `infer` and `resume` share."""
    begin = time.perf_counter()
    bar = progress_bar(engine.name) if _wants_progress(progress) else nullcontext()
    with bar as on_progress:
        outcome, interrupted = run(
            target,
            engine,
            key=key,
            on_progress=on_progress,
            chunk_steps=chunk_steps,
            vectorised=vectorised,
            threads=threads,
            store=store,
        )
    keep, failed = _judge(outcome, engine, target, interrupted, throw, key)
    sample = _collect(outcome, engine, target, keep, key)
    seconds = {**outcome.seconds, "total": time.perf_counter() - begin}
    posterior = Posterior(
        target,
        sample,
        engine=engine.name,
        seconds=seconds,
        manifest=manifest(target, engine, key),
        failed=tuple(failed),
        complete=not interrupted,
    )
    if store is not None:
        store.manifest["complete"] = bool(outcome.finished.all()) and not interrupted
        store.write_manifest()
    _warn(posterior, interrupted)
    return posterior


def _check_arguments(target, engine, key, chunk_steps, threads):
    require_target(target)
    if isinstance(engine, type) and issubclass(engine, AbstractEngine):
        raise ValueError(
            f"`engine` must be an instance: write `{engine.__name__}()`, with parentheses."
        )
    if not isinstance(engine, AbstractEngine):
        raise ValueError(f"`engine` must be a whence engine, as `NUTS()`; got {engine!r}.")
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"`key` must be a typed key, as `jax.random.key(0)` makes; got {key!r}."
        )
    if key.shape != ():
        raise ValueError(f"`key` must be a single key; got shape {key.shape}.")
    for name, value in {"chunk_steps": chunk_steps, "threads": threads}.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}.")


def _wants_progress(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


def _judge(outcome: Outcome, engine, target, interrupted, throw, key):
    """Return which replicas to keep and what to say of the others."""
    warmup = engine.schedule.warmup
    good = [_is(result, RESULTS.successful) for result in outcome.results]
    messages = {}
    for i, (result, ok) in enumerate(zip(outcome.results, good)):
        if not ok:
            messages[i] = f"chain {i} after {outcome.steps[i]} steps: {RESULTS[result]}"
    needs_draws = engine.schedule.steps > warmup
    enough = outcome.steps > warmup if needs_draws else outcome.steps >= 0
    if interrupted and not (enough & good).any():
        raise KeyboardInterrupt("Interrupted before there were any draws.")
    if not any(good):
        if throw:
            raise InferenceError(_explain(outcome, engine, target, messages, key))
        keep = [i for i in range(len(good)) if enough[i]]
        if not keep:
            raise InferenceError(_explain(outcome, engine, target, messages, key))
        return keep, messages.values()
    keep = [i for i in range(len(good)) if good[i] and enough[i]]
    for i in range(len(good)):
        if good[i] and not enough[i]:
            messages[i] = f"chain {i}: interrupted during warm-up"
    for i in range(len(good), engine.schedule.replicas):
        messages[i] = f"chain {i}: not started before the interruption"
    return keep, messages.values()


def _is(result, item) -> bool:
    return bool(np.all(np.asarray(result._value) == np.asarray(item._value)))


def _explain(outcome, engine, target, messages, key) -> str:
    text = f"{engine.name} failed. " + " ".join(dict.fromkeys(messages.values()))
    if any(_is(r, RESULTS.nonfinite_start) for r in outcome.results):
        found = check(target, key=key)
        text += "".join(f"\n  {problem}" for problem in found.problems)
    return text


def _collect(outcome: Outcome, engine, target, keep, key):
    schedule = engine.schedule
    records = [outcome.records[i] for i in keep]
    length = min(int(outcome.steps[i]) for i in keep)
    part = lambda a, b: jax.tree.map(lambda *x: np.stack([v[a:b] for v in x]), *records)
    warmup = min(schedule.warmup, length)
    trace = Trace(
        part(0, warmup) if warmup else None,
        part(warmup, length) if length > warmup else None,
    )
    state = jax.tree.map(lambda x: x[np.asarray(keep)], outcome.state)
    sample = engine.posterior(target, state, trace, key=_posterior_key(key))
    return jax.tree.map(
        lambda x: np.asarray(x) if isinstance(x, jax.Array) else x,
        sample,
    )


def _posterior_key(key):
    """Return a key for draws after the run, by a hash: `fold_in` would compile a program."""
    data = np.asarray(jr.key_data(key))
    words = hashlib.sha512(data.tobytes() + b"posterior").digest()
    made = np.frombuffer(words, dtype=np.uint32)[: data.size].reshape(data.shape)
    return jr.wrap_key_data(jnp.asarray(made), impl=jr.key_impl(key))


def _warn(posterior: Posterior, interrupted: bool) -> None:
    for message in posterior.failed:
        warnings.warn(f"Dropped {message}", InferenceWarning, stacklevel=3)
    if interrupted:
        warnings.warn(
            f"Interrupted: the posterior holds {posterior.num_draws} draws per chain.",
            InferenceWarning,
            stacklevel=3,
        )
    try:
        trouble = posterior.trouble()
    except KeyboardInterrupt:  # must not cost the draws
        trouble = "Interrupted after the run, before its draws were looked at."
    if trouble:
        warnings.warn(
            f"{trouble} Print `posterior.diagnose()` for what to do.",
            InferenceWarning,
            stacklevel=3,
        )
