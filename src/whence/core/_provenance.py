"""Provenance of a run: a hash of the data, versions of packages."""

import hashlib
import importlib.metadata
import sys
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from ._code import code_parts


def fingerprint(target: Any) -> str:
    """Return the SHA-256 of a target's arrays, with their shapes and types."""
    return _read(target)[0]


def _read(target: Any) -> tuple[str, dict[str, str]]:
    """Return the fingerprint, and type, shape and the hash up to it of each array by name."""
    digest, parts = hashlib.sha256(), {}
    for path, leaf in tree_leaves_with_path(eqx.filter(target, eqx.is_array_like)):
        array = np.asarray(leaf)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        name = keystr(path, simple=True, separator=".")
        parts[name] = f"{array.dtype} {array.shape} {digest.copy().hexdigest()[:16]}"
    return digest.hexdigest(), parts


def provenance(target: Any) -> dict[str, Any]:
    """Return what any manifest holds: the data, the model, precision, Python and the time."""
    whole, parts = _read(target)
    return {
        "data_sha256": whole,
        "data": parts,
        "model": code_parts(target),
        "x64": bool(jax.config.jax_enable_x64),
        "python": python(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def require_same(target: Any, content: Mapping[str, Any], where: str) -> None:
    """Raise `ValueError` unless a target is the one of a manifest: its data and its model.

    Code can be compared only between runs of one version of Python.

    Args:
        target: The target.
        content: The manifest.
        where: The file or folder, for the message.
    """
    whole, parts = _read(target)
    if content.get("data_sha256") not in (None, whole):
        raise ValueError(
            f"`target` must be the one of {where}, but its data differ"
            f"{_difference(content, parts)}."
        )
    then, now = content.get("model"), code_parts(target)
    version = ".".join(str(content.get("python")).split(".")[:2])
    if then is None or then == now or version != ".".join(sys.version.split(".")[:2]):
        return
    changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    raise ValueError(
        f"`target` must be the one of {where}, but its model differs, or a global or closure "
        f"that it reads: {', '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}."
    )


def _difference(content: Mapping[str, Any], now: Mapping[str, str]) -> str:
    """Return in which array, and how, data differ from those of a manifest."""
    is_double = bool(jax.config.jax_enable_x64)
    if content.get("x64") not in (None, is_double):
        switch = "False" if is_double else ""
        return (
            f": float64 is {'on' if is_double else 'not on'}, as it was"
            f"{' not' if is_double else ''} then. Call `whence.enable_x64({switch})` before "
            "data and model are made"
        )
    then = content.get("data")
    if not isinstance(then, Mapping):
        return " (their SHA-256 does)"
    for name in {**now, **then}:
        old, new = (str(parts.get(name, "missing")).rpartition(" ") for parts in (then, now))
        if old != new:
            if old[0] == new[0]:
                return f": the values of `{name}` do"
            return f": `{name}` is {new[0] or 'missing'}, and was {old[0] or 'missing'}"
    return " (their SHA-256 does)"


def require_entries(
    content: Any, entries: Mapping[str, type], maybe: Mapping[str, type], where: str
) -> None:
    """Raise `ValueError` unless a manifest has entries of these types.

    Args:
        content: The manifest, as JSON gave it.
        entries: Those that must be there.
        maybe: Those that may be missing or None.
        where: The file or folder, for the message.
    """
    if not isinstance(content, dict):
        raise ValueError(f"The manifest of {where} is damaged: it is no table of entries.")
    for name, kind in {**maybe, **entries}.items():
        value = content.get(name)
        if value is None and name in maybe:
            continue
        kinds = (int, float) if kind is float else kind
        is_flag = isinstance(value, bool) and kind is not bool
        if not isinstance(value, kinds) or is_flag:
            got = f"got {value!r:.60}" if name in content else "it is missing"
            raise ValueError(
                f"The manifest of {where} is damaged: `{name}` must be of type "
                f"{kind.__name__}; {got}."
            )


def python() -> str:
    """Return the version of Python."""
    return sys.version.split()[0]


@cache
def versions() -> dict[str, str]:
    """Return versions of packages; looking them up would cost each refit milliseconds."""
    packages = ("whence", "jax", "jaxlib", "equinox", "numpyro", "blackjax", "numpy", "arviz")
    return {name: importlib.metadata.version(name) for name in packages}
