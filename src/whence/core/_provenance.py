"""Provenance of a run: a hash of the data, versions of packages."""

import hashlib
import importlib.metadata
from functools import cache
from typing import Any

import equinox as eqx
import jax
import numpy as np


def fingerprint(target: Any) -> str:
    """Return the SHA-256 of a target's arrays, with their shapes and types."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(target, eqx.is_array_like)):
        array = np.asarray(leaf)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@cache
def versions() -> dict[str, str]:
    """Return versions of packages; looking them up would cost each refit milliseconds."""
    packages = ("whence", "jax", "jaxlib", "equinox", "numpyro", "blackjax", "numpy", "arviz")
    return {name: importlib.metadata.version(name) for name in packages}
