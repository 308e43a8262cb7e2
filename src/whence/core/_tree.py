"""Pytrees by path."""

from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import PyTree


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a pytree by path; a bare array is called `x`."""
    return {
        keystr(path, simple=True, separator=".") or "x": leaf
        for path, leaf in tree_leaves_with_path(tree)
    }


def unravel(flat: Any, like: PyTree) -> PyTree:
    """Undo `jax.flatten_util.ravel_pytree` for a batch of vectors, in NumPy.

    Nothing is compiled, which for a first fit would cost more than the split itself.

    Args:
        flat: Vectors, shape `(..., dim)`.
        like: A pytree of arrays (or shapes with dtypes) that one vector stands for.

    Returns:
        A pytree like `like`, each leaf with the leading axes of `flat`.
    """
    flat = np.asarray(flat)
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([int(np.prod(leaf.shape)) for leaf in leaves])
    parts = np.split(flat, ends[:-1], axis=-1) if leaves else []
    shaped = [
        part.reshape(*flat.shape[:-1], *leaf.shape).astype(leaf.dtype, copy=False)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, shaped)
