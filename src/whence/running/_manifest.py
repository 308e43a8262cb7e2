"""What is written down of a run, and what of it must be there when it is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..core._engine import AbstractProcedure
from ..core._json import to_json
from ..core._provenance import provenance, require_entries, versions
from ..core._types import PRNGKey
from ..posterior._citation import references
from ..storage import RunStore

MOST = 2**31  # steps and chains are counted in 32 bits
_ENTRIES = {
    **dict.fromkeys(("data_sha256", "python", "engine", "key_impl", "backend"), str),
    **dict.fromkeys(("x64", "complete", "vectorised"), bool),
    **{"key": list, "versions": dict, "configuration": dict, "steps": int},
}
_MAYBE = {
    **dict.fromkeys(("model", "mesh", "until"), dict),
    **dict.fromkeys(("created", "stopped", "source", "start"), str),
    "references": list,
}


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
    start: Any = None,
) -> RunStore:
    """Start a store that holds all that `resume` needs but the target."""
    content = manifest(target, engine, key)
    content |= {
        "configuration": to_json(engine),
        "steps": engine.schedule.steps,
        "complete": False,
        "stopped": None,
    }
    begin = [np.asarray(leaf) for leaf in jax.tree.leaves(start)]
    return RunStore.create(folder, {**content, **more}, begin)


def open_store(folder: str | Path) -> RunStore:
    """Open a store whose manifest says all that a run needs.

    Raises:
        ValueError: If the folder is none, or an entry is missing or of a wrong kind; it is
            named.
    """
    store = RunStore.open(folder)
    require_entries(store.manifest, _ENTRIES, _MAYBE, f"the run in {store.folder}")
    if not 1 <= store.manifest["steps"] < MOST:
        raise ValueError(
            f"The manifest of {store.folder} is damaged: `steps` must be from 1 to {MOST - 1}; "
            f"got {store.manifest['steps']}."
        )
    key_from(store)
    return store


def key_from(store: RunStore) -> PRNGKey:
    """Return the key of a stored run."""
    content = store.manifest
    try:
        data = jnp.asarray(np.asarray(content["key"], dtype=np.uint32))
        return jr.wrap_key_data(data, impl=content["key_impl"])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"The manifest of {store.folder} is damaged: `key` is none of "
            f"{content['key_impl']!r} ({error})."
        ) from error
