"""`resume()`: a stored run goes on, bit for bit."""

from pathlib import Path

import jax

from ..storage import RunStore
from ._check import check_values, require_target
from ._engine import AbstractEngine
from ._fingerprint import fingerprint
from ._infer import fit
from ._manifest import from_json, key_from, to_json
from ._posterior import Posterior
from ._target import AbstractTarget


def resume(
    folder: str | Path,
    target: AbstractTarget,
    *,
    engine: AbstractEngine | None = None,
    progress: bool | None = None,
    throw: bool = True,
    chunk_steps: int | None = None,
    threads: int | None = None,
) -> Posterior:
    """Go on with a run that `infer(..., store=folder)` began, in this or another process.

    On the same platform the draws equal those of an uninterrupted run bit for bit. A run
    that is complete is read and returned.

    Args:
        folder: The store.
        target: The target of the run; its data must be the same.
        engine: The engine of the run, if it is not one of whence's own.
        progress: As for `infer`.
        throw: As for `infer`.
        chunk_steps: As for `infer`; it does not change the draws.
        threads: As for `infer`.

    Returns:
        The posterior of the whole run.

    Raises:
        ValueError: If the folder is no store, a file in it is damaged, or target, engine
            or precision are not those of the run.
    """
    require_target(target)
    store = RunStore.open(folder)
    content = store.manifest
    if content["data_sha256"] != fingerprint(target):
        raise ValueError(
            f"`target` must be the one of the run in {folder}, but its data differ (their "
            "SHA-256 does)."
        )
    if content["x64"] != bool(jax.config.jax_enable_x64):
        want = "float64 (`whence.enable_x64()`)" if content["x64"] else "float32"
        raise ValueError(f"The run in {folder} was made in {want}; switch to it first.")
    if engine is None:
        engine = from_json(content["configuration"])
    elif to_json(engine) != content["configuration"]:
        raise ValueError(f"`engine` must be the one of the run: {content['engine']}.")
    if not isinstance(engine, AbstractEngine):
        raise ValueError(f"{folder} does not hold the configuration of an engine.")
    check_values(target)
    engine.validate(target)
    vectorised = bool(content["vectorised"])
    key = key_from(content)
    return fit(target, engine, key, progress, throw, chunk_steps, vectorised, threads, store)
