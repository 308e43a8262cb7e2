"""What an engine must keep so that the loop can cut, store, resume and extend its runs."""

import tempfile
import warnings
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


def check_cuts(
    engine: AbstractEngine, target: AbstractTarget, posterior: Posterior, *, key: PRNGKey
) -> None:
    """The same draws come from a run in other chunks, one stopped and resumed, a shorter one.

    Args:
        engine: The engine.
        target: What it ran on.
        posterior: What `infer` returned with this key.
        key: A typed key.

    Raises:
        AssertionError: With a sentence that names what is wrong.
    """
    schedule = engine.schedule
    how = {"key": key, "chunk_steps": schedule.steps // 3 + 1}
    wanted = posterior.sample.positions

    def require_same(other, name, wanted=wanted):
        require_close(other.sample.positions, wanted, name, "in one piece", exact=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferenceWarning)
        other = infer(target, engine, progress=False, **how)
        require_same(other, "A run in chunks of another size")
        with tempfile.TemporaryDirectory() as scratch:
            more = {"vectorised": False, "until": None}
            store = create_store(Path(scratch) / "run", target, engine, key, more)
            half = (schedule.warmup + schedule.steps) // 2
            run(target, engine, steps=half, vectorised=False, store=store, **how)
            resumed = resume(
                store.folder,
                target,
                engine=engine,
                progress=False,
                chunk_steps=how["chunk_steps"],
            )
            require_same(resumed, "A run stopped and resumed")
        if schedule.extendable:
            draws = max((schedule.steps - schedule.warmup) // 2, 1)
            until = Until(max_draws=draws)
            shorter = infer(target, engine, until=until, progress=False, **how)
            start = Posterior(target, posterior.sample, engine=engine.name)
            first = {n: v[:, :draws] for n, v in start.variables.items()}
            name = "A shorter run of an engine whose schedule is `extendable`"
            require_close(shorter.variables, first, name, "cut short", exact=True)
