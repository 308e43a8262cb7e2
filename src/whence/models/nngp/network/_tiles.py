"""A kernel matrix tile by tile: memory of one tile, and one triangle where symmetric."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._moments import KernelState, inputs_state

# Entries of a tile, times pixels. Of 2**14 to 2**20 the first was fastest for vectors (three
# layers of ReLU, 2000 inputs, one core): half the time of the plain recursion.
VECTOR_TILE, IMAGE_TILE = 2**14, 2**22


class Kernels(NamedTuple):
    """The two kernels of an infinitely wide network, matrices of shape `(rows, columns)`."""

    nngp: Array
    ntk: Array


def tiled(
    moments: Callable[[KernelState], KernelState],
    x1: Array,
    x2: Array | None,
    *,
    pairs: bool,
    ntk: bool,
) -> tuple[Array, ...]:
    """Return the matrices of a kernel, `(nngp,)` or `(nngp, ntk)`."""
    symmetric = x2 is None
    other = x1 if x2 is None else x2
    rows, columns = x1.shape[0], other.shape[0]
    size = _side(x1, pairs)
    height, width = min(size, rows), min(size, columns)
    steps = np.array(
        [
            (min(i, rows - height), min(j, columns - width))  # the last tiles overlap
            for i in range(0, rows, height)
            for j in range(0, columns, width)
            if not symmetric or j <= i
        ],
        np.int32,
    )

    @jax.checkpoint  # else a gradient would keep every tile's intermediate arrays
    def tile(i, j):
        block1 = jax.lax.dynamic_slice_in_dim(x1, i, height)
        block2 = jax.lax.dynamic_slice_in_dim(other, j, width)
        state = moments(inputs_state(block1, block2, pairs=pairs, ntk=ntk))
        values = _arrays(state.cross)
        if not symmetric:
            return values
        same = i + jnp.arange(height)[:, None] == j + jnp.arange(width)
        own = (v[:, None] for v in _arrays(state.left))
        return tuple(jnp.where(same, d, v) for d, v in zip(own, values))

    if len(steps) == 1:
        return tile(*steps[0])

    def step(matrices, start):
        i, j = start
        values = tile(i, j)
        put = jax.lax.dynamic_update_slice
        matrices = tuple(put(m, v, (i, j)) for m, v in zip(matrices, values))
        if symmetric:
            matrices = tuple(put(m, v.T, (j, i)) for m, v in zip(matrices, values))
        return matrices, None

    empty = tuple(jnp.zeros((rows, columns), x1.dtype) for _ in range(1 + ntk))
    return jax.lax.scan(step, empty, jnp.asarray(steps))[0]


def _arrays(moments) -> tuple[Array, ...]:
    return (moments.nngp,) if moments.ntk is None else (moments.nngp, moments.ntk)


def _side(x: Array, pairs: bool) -> int:
    pixels = math.prod(x.shape[1:-1])
    if pixels == 1:
        return math.isqrt(VECTOR_TILE)
    return max(1, math.isqrt(IMAGE_TILE // (pixels**2 if pairs else pixels)))
