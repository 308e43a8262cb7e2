"""What an engine must keep so that the loop can cut, store, resume and extend its runs."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core._engine import AbstractEngine
from ..core._target import AbstractTarget
from ..core._types import PRNGKey
from ..posterior._posterior import Posterior
from ..running._infer import InferenceWarning, infer
from ..running._loop import run
from ..running._manifest import create_store
from ..running._resume import resume
from ..running._until import Until
from ._require import require_close


def check_chunks(
    engine: AbstractEngine, target: AbstractTarget, posterior: Posterior, *, key: PRNGKey
) -> None:
    """The draws do not depend on the chunks that a run is cut into."""
    with _without_warnings():
        other = infer(target, engine, progress=False, **_in_thirds(engine, key))
    _require_same(other, posterior, "A run in chunks of another size")


def check_resume(
    engine: AbstractEngine, target: AbstractTarget, posterior: Posterior, *, key: PRNGKey
) -> None:
    """A run that is stopped halfway and resumed gives the same draws; see `check_chunks`."""
    schedule, how = engine.schedule, _in_thirds(engine, key)
    with _without_warnings(), tempfile.TemporaryDirectory() as scratch:
        more = {"vectorised": False, "until": None}
        store = create_store(Path(scratch) / "run", target, engine, key, more)
        half = max((schedule.warmup + schedule.steps) // 2, 1)
        run(target, engine, steps=half, vectorised=False, store=store, **how)
        store.release()
        chunk = how["chunk_steps"]
        resumed = resume(store.folder, target, engine=engine, progress=False, chunk_steps=chunk)
        _require_same(resumed, posterior, "A run stopped and resumed")


def check_until(
    engine: AbstractEngine, target: AbstractTarget, posterior: Posterior, *, key: PRNGKey
) -> None:
    """A shorter run gives the first draws, if the engine's schedule is `extendable`."""
    schedule = engine.schedule
    if not schedule.extendable:
        return
    draws = max((schedule.steps - schedule.warmup) // 2, 1)
    with _without_warnings():
        until = Until(max_draws=draws)
        how = _in_thirds(engine, key)
        shorter = infer(target, engine, until=until, progress=False, **how)
        start = Posterior(target, posterior.sample, engine=engine.name)
        first = {n: v[:, :draws] for n, v in start.variables.items()}
    name = "A shorter run of an engine whose schedule is `extendable`"
    require_close(shorter.variables, first, name, "cut short", exact=True)


def _in_thirds(engine, key):
    return {"key": key, "chunk_steps": engine.schedule.steps // 3 + 1}


def _require_same(other: Posterior, posterior: Posterior, name: str) -> None:
    wanted = posterior.sample.positions
    require_close(other.sample.positions, wanted, name, "in one piece", exact=True)


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferenceWarning)
        yield
