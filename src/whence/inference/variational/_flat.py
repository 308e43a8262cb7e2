"""Flat vectors instead of positions, and log densities at several of them."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from ...core._flat import position_shapes
from ...core._target import AbstractTarget, local_names
from ...core._tree import named_leaves
from ...core._types import Position
from ._family import Layout


def layout_of(target: AbstractTarget, batch: int | None = None) -> Layout:
    """Names and sizes of the parts of a flat position, or of what a batch sees of it."""
    local = local_names(target)
    found = []
    for name, leaf in named_leaves(position_shapes(target)).items():
        if name in local:
            rows = batch or leaf.shape[0]
            found.append((name, leaf.size // leaf.shape[0] * rows, rows))
        else:
            found.append((name, leaf.size))
    return tuple(found)


def on_flat(
    function: Callable[[Position], Any],
    shared: tuple[bool, ...],
    unravel: Callable[[Array], Position],
    example: Float[Array, " dim"],
) -> Callable[[Float[Array, " dim"]], Any]:
    """Return `function` as one of flat positions; of what draws share there is one copy.

    Args:
        function: Of a position.
        shared: Which parts of a position are the same in all draws.
        unravel: Makes a position of a flat one.
        example: A flat position.
    """
    leaves = jax.tree.leaves(unravel(example))

    def one(flat):
        own, treedef = jax.tree.flatten(unravel(flat))
        parts = [first if same else x for first, x, same in zip(leaves, own, shared)]
        return function(jax.tree.unflatten(treedef, parts))

    return one
