"""What is written down of a run, and an engine's configuration as JSON and back."""

import dataclasses
import importlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..core._engine import AbstractEngine
from ..core._provenance import fingerprint, versions
from ..core._target import AbstractTarget
from ..core._types import PRNGKey
from ..storage import RunStore


def manifest(target: AbstractTarget, engine: AbstractEngine, key: PRNGKey) -> dict[str, Any]:
    """Return versions, key, engine and a hash of the data, as JSON values."""
    return {
        "engine": repr(engine),
        "key": np.asarray(jr.key_data(key)).tolist(),
        "key_impl": str(jr.key_impl(key)),
        "x64": bool(jax.config.jax_enable_x64),
        "backend": jax.default_backend(),
        "python": sys.version.split()[0],
        "versions": dict(versions()),
        "data_sha256": fingerprint(target),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def create_store(
    folder: str | Path,
    target: AbstractTarget,
    engine: AbstractEngine,
    key: PRNGKey,
    more: Mapping[str, Any],
) -> RunStore:
    """Start a store that holds all that `resume` needs but the target.

    Args:
        folder: A new or empty folder.
        target: The target density.
        engine: The engine.
        key: Key of the run.
        more: Further JSON values of the manifest.
    """
    content = manifest(target, engine, key)
    content |= {
        "configuration": to_json(engine),
        "steps": engine.schedule.steps,
        "complete": False,
        "stopped": None,
    }
    return RunStore.create(folder, {**content, **more})


def key_from(content: dict[str, Any]) -> PRNGKey:
    """Return the key of a manifest."""
    data = jnp.asarray(np.asarray(content["key"], dtype=np.uint32))
    return jr.wrap_key_data(data, impl=content["key_impl"])


def to_json(value: Any) -> Any:
    """Return a configuration as JSON values.

    Raises:
        ValueError: If it holds anything but numbers, strings, tuples and such modules.
    """
    if isinstance(value, eqx.Module):
        cls = type(value)
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": f"{cls.__module__}:{cls.__qualname__}", "fields": fields}
    if isinstance(value, tuple | list):
        return {"tuple": [to_json(item) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"`store` needs an engine whose settings are numbers, text and engine parts; got "
        f"{value!r}."
    )


def from_json(value: Any) -> Any:
    """Return the configuration that `to_json` wrote.

    Only classes of whence itself are looked up: a store is data, not code.

    Raises:
        ValueError: If the class is not one of ours.
    """
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(from_json(item) for item in value["tuple"])
    module, _, name = value["class"].partition(":")
    if module.split(".")[0] != "whence":
        raise ValueError(
            f"The store was written with the engine {name} of {module}; pass it: "
            "`whence.resume(folder, target, engine=...)`."
        )
    cls = getattr(importlib.import_module(module), name)
    fields = {n: from_json(v) for n, v in value["fields"].items()}
    if not issubclass(cls, eqx.Module):
        raise ValueError(f"{value['class']} is not an engine or a part of one.")
    settable = {f.name for f in dataclasses.fields(cls) if f.init}
    return cls(**{n: v for n, v in fields.items() if n in settable})
