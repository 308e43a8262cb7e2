"""Pytrees by path."""

from typing import Any

from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import PyTree


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a pytree by path; a bare array is called `x`."""
    return {
        keystr(path, simple=True, separator=".") or "x": leaf
        for path, leaf in tree_leaves_with_path(tree)
    }
