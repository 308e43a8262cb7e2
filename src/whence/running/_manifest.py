"""What is written down of a run, and an engine's configuration as JSON and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..core._engine import AbstractProcedure
from ..core._json import to_json
from ..core._provenance import provenance, versions
from ..core._types import PRNGKey
from ..posterior._citation import references
from ..storage import RunStore


def manifest(target: Any, engine: AbstractProcedure, key: PRNGKey) -> dict[str, Any]:
    """Return versions, key, engine and a hash of the data, as JSON values."""
    return {
        **provenance(target),
        "engine": repr(engine),
        "key": np.asarray(jr.key_data(key)).tolist(),
        "key_impl": str(jr.key_impl(key)),
        "backend": jax.default_backend(),
        "versions": dict(versions()),
        "references": references(engine, target),
    }


def create_store(
    folder: str | Path,
    target: Any,
    engine: AbstractProcedure,
    key: PRNGKey,
    more: Mapping[str, Any],
) -> RunStore:
    """Start a store that holds all that `resume` needs but the target."""
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
