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

from ._code import code_parts


def fingerprint(target: Any) -> str:
    """Return the SHA-256 of a target's arrays, with their shapes and types."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(target, eqx.is_array_like)):
        array = np.asarray(leaf)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def provenance(target: Any) -> dict[str, Any]:
    """Return what any manifest holds: the data, the model, precision, Python and the time."""
    return {
        "data_sha256": fingerprint(target),
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
    if content.get("data_sha256") not in (None, fingerprint(target)):
        raise ValueError(
            f"`target` must be the one of {where}, but its data differ (their SHA-256 does)."
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
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
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
