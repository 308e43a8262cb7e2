"""Flat vectors instead of positions, and log densities at several of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ...core._target import AbstractTarget
from ...core._tree import named_leaves
from ...core._types import Position
from ._family import AbstractFamily, Layout


def flat_zeros(target: AbstractTarget) -> tuple[Float[Array, " dim"], Any]:
    """A flat position of zeros, and the function that gives it its form."""
    shapes = jax.eval_shape(lambda: target.init(key=jr.key(0)))
    return ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))


def layout_of(target: AbstractTarget) -> Layout:
    """Names and sizes of the parts of a flat position."""
    shapes = jax.eval_shape(lambda: target.init(key=jr.key(0)))
    return tuple((name, leaf.size) for name, leaf in named_leaves(shapes).items())


def on_flat(
    function: Callable[[Position], Array],
    family: AbstractFamily,
    target: AbstractTarget,
    example: Float[Array, " dim"],
) -> Callable[[Float[Array, " dim"]], Array]:
    """Return `function` as one of flat positions; of what draws share there is one copy.

    Args:
        function: A function of a position.
        family: The family that the positions are drawn from.
        target: The target density, for their form.
        example: One of the positions.
    """
    _, unravel = flat_zeros(target)
    leaves, treedef = jax.tree.flatten(unravel(example))
    shared = family.shared(layout_of(target))

    def one(flat):
        own = jax.tree.leaves(unravel(flat))
        parts = [first if same else x for first, x, same in zip(leaves, own, shared)]
        return function(jax.tree.unflatten(treedef, parts))

    return one
