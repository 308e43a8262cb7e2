"""A posterior back from a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..core._engine import AbstractEngine, Sample
from ..core._flat import position_shapes
from ..core._json import from_json
from ..core._provenance import require_entries, require_same
from ..core._target import AbstractTarget
from ..core._tree import named_leaves
from ..diagnostics._records import AbstractRecord, ForeignRecord
from ..posterior._posterior import Posterior
from ._stored import read_run

_ENTRIES = {"manifest": dict, "engine": str, "seconds": dict, "failed": list, "complete": bool}
_MAYBE = {
    **dict.fromkeys(("method", "stopped"), str),
    **dict.fromkeys(("log_evidence", "log_evidence_error"), float),
    "record": dict,
}


def load(
    path: str | Path,
    *,
    target: AbstractTarget | None = None,
    engine: AbstractEngine | None = None,
    thin: int = 1,
) -> Posterior:
    """Read a posterior: a file that `Posterior.save` wrote, or the store of a run.

    Opening a store reads no draws; they are read when they are asked for. The run may be
    unfinished, or still going on in another process.

    Args:
        path: The netCDF file, zarr folder, or store.
        target: The target it was sampled from; without it, everything that needs the model
            (`draws`, `map`, `predict`, predictive groups) is refused. A store needs it.
        engine: The engine of a stored run, if it is not one of whence's own.
        thin: For a store: keep every `thin`-th draw, if all would not fit in memory.

    Raises:
        ValueError: If the file is not one of ours, if `target` has other data, or if a store
            is damaged or has no draws yet.
    """
    from ..storage import as_path, is_zarr, load_netcdf, load_zarr

    path = as_path(path)
    if (path / "manifest.json").is_file():
        if target is None:
            raise ValueError(
                f"`target` must be given to read the run in {path}: "
                "`whence.load(folder, target=target)`."
            )
        return read_run(path, target, engine=engine, thin=thin)
    if engine is not None or thin != 1:
        raise ValueError(f"`engine` and `thin` are for stores; {str(path)!r} is none.")
    if path.is_dir() and not is_zarr(path):
        raise ValueError(
            f"`path` must be a file, a zarr folder or the store of a run; {path} is a folder "
            "without the manifest.json of a store: a run in it was not begun."
        )
    tree = load_zarr(path) if is_zarr(path) else load_netcdf(path)
    own = _own_attributes(tree.attrs, path)
    manifest = own["manifest"]
    if target is not None:
        require_same(target, manifest, f"the posterior in {str(path)!r}")
    if "posterior" not in tree.children:
        raise ValueError(f"{path} must have a group `posterior`; it was removed.")
    names = _read_names(tree)
    arrays = lambda name: (
        {
            names.get(str(n), str(n)): np.asarray(v.values)
            for n, v in tree[name].data_vars.items()
        }
        if name in tree.children
        else {}
    )
    stats = arrays("sample_stats")
    sample = Sample(
        positions=_positions(arrays("unconstrained_posterior"), target),
        stats={n: v for n, v in stats.items() if n != "log_weight"},
        log_weights=stats.get("log_weight"),
        log_evidence=own["log_evidence"],
        log_evidence_error=own["log_evidence_error"],
        method=own["method"],
        record=_record(own["record"], arrays("record")),
    )
    return Posterior(
        target,
        sample,
        engine=own["engine"],
        seconds=own["seconds"],
        manifest=manifest,
        failed=tuple(own["failed"]),
        complete=own["complete"],
        stopped=own["stopped"],
        variables=arrays("posterior"),
        described=_read_description(tree, names),
    )


def _own_attributes(attrs: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """Return what a file says of the run, checked; None for what it does not say."""
    names = (*_ENTRIES, *_MAYBE)
    try:
        own = {name: json.loads(attrs.get(f"whence_{name}", "null")) for name in names}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"What {path} says of its run is damaged: {error}") from error
    require_entries(own, _ENTRIES, _MAYBE, str(path))
    kinds = {"versions": dict, "model": dict, "references": list, "key": list, "x64": bool}
    words = ("data_sha256", "python", "created", "key_impl")
    require_entries(own["manifest"], {}, kinds | dict.fromkeys(words, str), str(path))
    return own


def _record(content: Any, arrays: dict[str, np.ndarray]) -> AbstractRecord | None:
    try:
        return from_json(content, arrays)
    except ValueError:  # of another package: kept as data
        require_entries(content, {"class": str, "fields": dict}, {}, "a record")
        fields = {n: from_json(v, arrays) for n, v in content["fields"].items()}
        return ForeignRecord(content["class"], fields)


def _positions(named: dict[str, np.ndarray], target):
    if target is None:
        return named
    shapes = position_shapes(target)
    leaves, treedef = jax.tree.flatten(shapes)
    names = list(named_leaves(shapes))
    for name, leaf in zip(names, leaves):
        got = named.get(name, np.zeros(())).shape
        if got[2:] != leaf.shape or len(got) < 2:
            raise ValueError(
                f"The group `unconstrained_posterior` of a file must have {name!r} of shape "
                f"(chain, draw, *{leaf.shape}); it was changed. Load it without `target`."
            )
    return jax.tree.unflatten(
        treedef, [named[n].astype(leaf.dtype) for n, leaf in zip(names, leaves)]
    )


def _read_names(tree) -> dict[str, str]:
    """Return what variables are called that a file must call otherwise."""
    try:
        names = json.loads(tree.attrs.get("whence_names", "{}"))
        return {str(n): str(own) for n, own in names.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"What the file says of names is damaged: {error}") from error


def _read_description(tree, names: Mapping[str, str]) -> dict[str, Any]:
    dataset = tree["posterior"].to_dataset()
    own = lambda name: names.get(str(name), str(name))
    dims = {
        own(n): tuple(own(d) for d in v.dims if d not in ("chain", "draw"))
        for n, v in dataset.data_vars.items()
    }
    coords = {own(n): v.values for n, v in dataset.coords.items() if n not in ("chain", "draw")}
    return {"dims": dims, "coords": coords}
