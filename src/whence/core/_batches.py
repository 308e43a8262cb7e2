"""Maps over many values in batches: memory stays bounded, and one batch needs no loop."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree


def in_batches(function: Callable[..., Any], values: PyTree, most: int = 1000) -> Any:
    """Return `function` of each of the values, at most some of them at once.

    As `jax.lax.map`, with one copy of the function to compile where there can be one: no loop
    for a single batch, and batches of one size.

    Args:
        function: A function of one value.
        values: A pytree with a leading axis of values.
        most: The largest number of values at once.
    """
    number = jax.tree.leaves(values)[0].shape[0]
    if number <= most:
        return jax.vmap(function)(values)
    sizes = [size for size in range(most, most // 2, -1) if number % size == 0]
    return jax.lax.map(function, values, batch_size=sizes[0] if sizes else most)


def by_draw(function: Callable[..., Any], values: PyTree, most: int = 1000) -> Any:
    """Return `function` of each value, as `in_batches` does, over axes `(chain, draw)`.

    Args:
        function: A function of what belongs to one draw.
        values: A pytree with leading axes `(chain, draw)`.
        most: The largest number of draws at once.
    """
    lead = jax.tree.leaves(values)[0].shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), values)
    out = in_batches(function, flat, most)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), out)
