"""Flat vectors instead of positions, and log densities at several of them."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from ...core._flat import flat_view, position_shapes
from ...core._target import AbstractTarget
from ...core._tree import named_leaves
from ...core._types import Position
from ._family import AbstractFamily, Layout


def layout_of(target: AbstractTarget) -> Layout:
    """Names and sizes of the parts of a flat position."""
    shapes = named_leaves(position_shapes(target))
    return tuple((name, leaf.size) for name, leaf in shapes.items())


def on_flat(
    function: Callable[[Position], Array],
    family: AbstractFamily,
    target: AbstractTarget,
    example: Float[Array, " dim"],
) -> Callable[[Float[Array, " dim"]], Array]:
    """Return `function` as one of flat positions; of what draws share there is one copy."""
    _, unravel = flat_view(target)
    leaves, treedef = jax.tree.flatten(unravel(example))
    shared = family.shared(layout_of(target))

    def one(flat):
        own = jax.tree.leaves(unravel(flat))
        parts = [first if same else x for first, x, same in zip(leaves, own, shared)]
        return function(jax.tree.unflatten(treedef, parts))

    return one
