"""`infer_many()`: one engine on many targets, each by itself, on as many machines as wanted."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax.random as jr

from ..core._engine import AbstractEngine
from ..core._key import as_key
from ..core._require import require_engine, require_target
from ..core._results import InferenceWarning
from ..posterior._posterior import Posterior
from ._executor import check_executor, run_all
from ._infer import infer

_OPTIONS = ("start", "until", "throw", "chunk_steps", "vectorised", "threads")


def infer_many(
    targets: Mapping[Any, Any] | Iterable[Any],
    engine: AbstractEngine,
    *,
    key: Any,
    executor: Any = None,
    **options: Any,
) -> Any:
    """Run an engine on many targets, independently of each other.

    Targets of one structure compile once in each process. A failure ends it all, unless
    `throw=False`. Ctrl-C ends it after the fits that have begun (without an executor, as it
    ends that of `infer`); a warning says how many there are.

    Args:
        targets: Targets, or a dict of them by name.
        engine: The engine.
        key: A typed key or a whole number; fit number `i` has `fold_in(key, i)`, wherever
            it runs.
        executor: Any `concurrent.futures.Executor`; by default one fit follows another in
            this process. Where work is sent to another process, models must be importable
            there (or `cloudpickle` installed).
        **options: As for `infer`: `start`, `until`, `throw`, `chunk_steps`, `vectorised`,
            `threads`.

    Returns:
        The posteriors, as a list or by name; after Ctrl-C those of the first targets.

    Raises:
        ValueError: If an argument is wrong, or work cannot be sent.
        InferenceError: As `infer`.
        KeyboardInterrupt: If Ctrl-C came before there was a posterior.
    """
    if not isinstance(targets, Mapping | Iterable):
        raise ValueError(f"`targets` must be targets, or a dict of them; got {targets!r}.")
    named = dict(targets) if isinstance(targets, Mapping) else dict(enumerate(targets))
    for target in named.values():
        require_target(target)
    require_engine(engine)
    check_executor(executor)
    key = as_key(key)
    for name in options:
        if name not in _OPTIONS:
            raise ValueError(f"`options` must be among {', '.join(_OPTIONS)}; got {name!r}.")
    keys = [jr.fold_in(key, i) for i in range(len(named))]
    calls = [(t, engine, k, options) for t, k in zip(named.values(), keys)]
    there = executor is not None
    parts = run_all(executor, _fit, calls, part=True) if there else _one_after_another(calls)
    if len(parts) < len(calls):
        said = f"Interrupted: here are the posteriors of {len(parts)} of {len(calls)} targets."
        warnings.warn(said, InferenceWarning, stacklevel=2)
    made = [_posterior(target, part) for target, part in zip(named.values(), parts)]
    return dict(zip(named, made)) if isinstance(targets, Mapping) else made


def _one_after_another(calls) -> list[Any]:
    parts = []
    for call in calls:
        try:
            parts.append(_fit(*call))
        except KeyboardInterrupt:
            if not parts:
                raise
            break
        if not parts[-1][1]["complete"]:
            break
    return parts


def _fit(target, engine, key, options) -> tuple[Any, dict[str, Any]]:
    posterior = infer(target, engine, key=key, progress=False, **options)
    kept = ("engine", "seconds", "manifest", "failed", "complete", "stopped")
    return posterior.sample, {name: getattr(posterior, name) for name in kept}


def _posterior(target, part) -> Posterior:
    """Return a posterior with the caller's own target, not the copy that travelled."""
    sample, kept = part
    return Posterior(target, sample, **kept)
