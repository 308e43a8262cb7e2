"""Leaves of pytrees by path, and flat vectors back in the form of a pytree."""

from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import PyTree


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a pytree by path; a bare array is called `x`.

    Args:
        tree: Any pytree.

    Raises:
        ValueError: If two leaves would have one name, as `{"a": {"b": 1.0}, "a.b": 2.0}`.
    """
    named = {}
    for path, leaf in tree_leaves_with_path(tree):
        name = keystr(path, simple=True, separator=".") or "x"
        if name in named:
            raise ValueError(
                f"Names of a pytree must be distinct, but two leaves are called {name!r}: "
                "avoid dots in keys."
            )
        named[name] = leaf
    return named


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
        part.reshape((*flat.shape[:-1], *leaf.shape)).astype(leaf.dtype, copy=False)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, shaped)
