"""What became of a run: which replicas to keep, and their draws."""

import hashlib
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from ..core._engine import (
    AbstractEngine,
    AbstractProcedure,
    Explains,
    Sample,
    Trace,
    split_state,
)
from ..core._results import INSTEAD_OF_ERROR, RESULTS, InferenceError
from ..core._target import AbstractTarget
from ..core._types import PRNGKey
from ..diagnostics._diagnose import IN_WARMUP, NOT_STARTED, SHORTER
from ..diagnostics._names import by_reason
from ..language._check import check
from ._loop import Outcome


class Verdict(NamedTuple):
    """Which replicas count.

    Attributes:
        keep: Their numbers.
        failed: What became of the others, or of all if all failed, one sentence each.
        none_good: Whether all failed.
    """

    keep: list[int]
    failed: tuple[str, ...]
    none_good: bool = False

    def told(self) -> list[str]:
        """Return what a warning says of each that failed."""
        return [f"{'Failed:' if self.none_good else 'Dropped'} {text}" for text in self.failed]


def judge(
    outcome: Outcome, engine: AbstractProcedure, target: Any, key: PRNGKey, *, throw: bool
) -> Verdict:
    """Return which replicas to keep.

    Raises:
        InferenceError: If there are no draws; if all replicas failed and `throw` is set.
        KeyboardInterrupt: If the run was interrupted before there were any draws.
    """
    good = _succeeded(outcome)
    numbers = outcome.numbers or range(len(good))
    messages = {}
    for i, (result, ok) in enumerate(zip(outcome.results, good)):
        if not ok:
            said = outcome.errors.get(numbers[i]) or RESULTS[result]
            messages[i] = f"chain {numbers[i]} after {outcome.steps[i]} steps: {said}"
    enough = _has_draws(outcome, engine)
    if not (enough & good).any():
        if outcome.ending == "interrupted":
            raise KeyboardInterrupt("Interrupted before there were any draws.")
        if outcome.ending == "time over" and any(good):
            raise InferenceError(f"{engine.name}: the time was over during warm-up.")
    if not any(good):
        if throw or not enough.any():
            raise InferenceError(_explain(outcome, engine, target, messages, key))
        keep = _most_draws([i for i in range(len(good)) if enough[i]], outcome, engine)
        return Verdict(keep, tuple(messages.values()), none_good=True)
    for i in range(len(good)):
        if good[i] and not enough[i]:
            messages[i] = f"chain {numbers[i]}: {IN_WARMUP}"
    for i in set(range(engine.schedule.replicas)) - set(numbers):
        said = outcome.errors.get(i, NOT_STARTED)
        messages[len(messages) + len(good)] = f"chain {i}: {said}"
    able = [i for i in range(len(good)) if good[i] and enough[i]]
    keep = _most_draws(able, outcome, engine)
    for i in set(able) - set(keep):
        messages[i] = f"chain {numbers[i]} after {outcome.steps[i]} steps: {SHORTER}"
    return Verdict(keep, tuple(messages.values()))


def _most_draws(able: list[int], outcome: Outcome, engine: AbstractProcedure) -> list[int]:
    """Return the replicas with the most draws in all, if each has as many as the shortest.

    Those of a run that was stopped may be at very different steps.
    """
    if not engine.schedule.extendable:
        return able
    draws = outcome.steps - engine.schedule.warmup
    longest = sorted(able, key=lambda i: -draws[i])
    size = max(range(1, len(able) + 1), key=lambda n: (n * draws[longest[n - 1]], n))
    return sorted(longest[:size])


def collect(
    outcome: Outcome,
    engine: AbstractEngine,
    target: AbstractTarget,
    keep: list[int],
    key: PRNGKey,
    *,
    thin: int = 1,
) -> Sample:
    """Return the draws of some replicas: as many as each of them has."""
    trace = trace_of(outcome, keep, engine.schedule.warmup, thin)
    state = take_replicas(outcome.state, keep)
    sample = engine.posterior(target, state, trace, key=_posterior_key(key))
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, sample)


def trace_of(outcome: Outcome, keep: list[int], warmup: int, thin: int = 1) -> Trace:
    """Return what some replicas recorded, over the steps that all of them made."""
    length = min(outcome.total, *(int(outcome.steps[i]) for i in keep))
    warmup = min(warmup, length)
    warm, rest = [], []
    for i in keep:
        record = outcome.read(i)
        warm.append(jax.tree.map(lambda x: x[:warmup], record))
        part = jax.tree.map(lambda x: x[warmup:length:thin], record)
        rest.append(jax.tree.map(np.array, part) if thin > 1 else part)  # a copy frees the rest
        del record
    stack = lambda parts: jax.tree.map(lambda *x: np.stack(x), *parts)
    return Trace(stack(warm) if warmup else None, stack(rest) if length > warmup else None)


def take_replicas(state: PyTree, keep: list[int]) -> PyTree:
    """Return the states of some replicas."""
    arrays, rest = split_state(state)
    return eqx.combine(jax.tree.map(lambda x: x[np.asarray(keep)], arrays), rest)


def so_far(
    outcome: Outcome, engine: AbstractEngine, target: AbstractTarget, key: PRNGKey
) -> Sample | None:
    """Return the draws so far of the replicas that have any and did not fail."""
    good = _succeeded(outcome)
    keep = [int(i) for i in np.flatnonzero(_has_draws(outcome, engine) & good)]
    return collect(outcome, engine, target, keep, key) if keep else None


def _succeeded(outcome: Outcome) -> list[bool]:
    return [_is(result, RESULTS.successful) for result in outcome.results]


def _has_draws(outcome: Outcome, engine: AbstractProcedure) -> np.ndarray:
    schedule = engine.schedule
    needs = schedule.steps > schedule.warmup
    return outcome.steps > schedule.warmup if needs else outcome.steps >= 0


def _is(result, item) -> bool:
    return bool(np.all(np.asarray(result._value) == np.asarray(item._value)))


def _explain(outcome, engine, target, messages, key) -> str:
    said = [f"{text.rstrip('.')}." for text in by_reason(messages.values())]
    text = f"{engine.name} failed. " + " ".join(said)
    if outcome.errors:
        text += f" {INSTEAD_OF_ERROR}"
    if isinstance(engine, Explains):
        text += " " + engine.explain(target, outcome.state)
    failed_to_start = any(_is(r, RESULTS.nonfinite_start) for r in outcome.results)
    if failed_to_start and isinstance(target, AbstractTarget):
        found = check(target, key=key)
        text += "".join(f"\n  {problem}" for problem in found.problems)
    return text


def _posterior_key(key: PRNGKey) -> PRNGKey:
    """Return a key for draws after the run, by a hash: `fold_in` would compile a program."""
    data = np.asarray(jr.key_data(key))
    words = hashlib.sha512(data.tobytes() + b"posterior").digest()
    made = np.frombuffer(words, dtype=np.uint32)[: data.size].reshape(data.shape)
    return jr.wrap_key_data(jnp.asarray(made), impl=jr.key_impl(key))
