"""Products with a kernel matrix that is never whole: square tiles of one triangle."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ....core._types import AnyArray
from ..network._abstract_layer import AbstractLayer

SIDE = 2048  # rows of a tile: large enough for matrix products at full speed


class KernelTiles(eqx.Module):
    """The kernel matrix of inputs as an operator."""

    network: AbstractLayer  # whose kernel
    # the inputs in blocks of equal length; what the last lacks repeats its first
    blocks: tuple[Array, ...]
    size: int = eqx.field(static=True)  # number of inputs, the repeated ones not counted
    # one triangle, row by row, diagonal tiles included; None if it is recomputed in every
    # product
    tiles: tuple[Array, ...] | None
    diagonal: Float[Array, " rows"]  # variance of each input

    @property
    def dtype(self):
        """Precision of the tiles."""
        return (self.blocks if self.tiles is None else self.tiles)[0].dtype

    @property
    def rounding(self) -> Array:
        """Size of one rounding of an entry."""
        return jnp.finfo(self.dtype).eps * jnp.max(self.diagonal)

    @property
    def side(self) -> int:
        """Rows of a block."""
        return self.blocks[0].shape[0]

    def product(self, vectors: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
        """Return the kernel times vectors, in their precision.

        Products within a tile are in the tile's precision, sums over tiles in the vectors'.
        """
        parts = self.split(vectors)
        sums = [jnp.zeros_like(part) for part in parts]

        def pair(at):
            number, (i, j) = at
            tile = self.tile(i, j) if self.tiles is None else self.tiles[number]
            return _products(tile, parts[i], parts[j])

        places = self.places()
        for (i, j), (down, across) in zip(places, in_threads(pair, enumerate(places))):
            sums[i] += down
            if i != j:
                sums[j] += across
        return jnp.concatenate(sums)[: self.size]

    def places(self) -> list[tuple[int, int]]:
        """Return the blocks of rows and columns of each tile."""
        return [(i, j) for i in range(len(self.blocks)) for j in range(i + 1)]

    def split(self, vectors: Array) -> list[Array]:
        """Return the rows of each block; of repeated inputs they are zero."""
        missing = self.side * len(self.blocks) - self.size
        return jnp.split(jnp.pad(vectors, ((0, missing), (0, 0))), len(self.blocks))

    def tile(self, i: int, j: int) -> Array:
        """Compute a tile."""
        return self.network.nngp(self.blocks[i], None if i == j else self.blocks[j])

    def cross(self, x: AnyArray) -> Float[Array, "rows points"]:
        """Return the kernel of the inputs with other ones."""
        new = jnp.asarray(x).astype(self.diagonal.dtype)
        old = [block.astype(new.dtype) for block in self.blocks]
        return jnp.concatenate(
            list(in_threads(lambda block: self.network.nngp(block, new), old))
        )[: self.size]


def kernel_tiles(network: AbstractLayer, x: AnyArray, *, memory: float) -> KernelTiles:
    """Prepare products with the kernel of inputs.

    The triangle is stored in the precision of `x` if that fits, else in float32 if that
    fits; else it is not stored, and every product computes it again.
    """
    diagonal = network.diagonal(x.astype(float)).nngp  # and checks of the inputs
    x = jnp.asarray(x)
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
    rows = len(x)
    side = min(SIDE, rows)
    count = -(-rows // side)
    gigabytes = count * (count + 1) / 2 * side**2 / 2**30
    dtypes = [d for d in (x.dtype, jnp.dtype("float32")) if d.itemsize * gigabytes <= memory]
    whole = x.astype(dtypes[0]) if dtypes else x
    missing = count * side - rows
    whole = jnp.concatenate([whole, jnp.repeat(whole[:1], missing, axis=0)])
    kernel = KernelTiles(network, tuple(jnp.split(whole, count)), rows, None, diagonal)
    if not dtypes:
        return kernel
    tiles = in_threads(lambda at: kernel.tile(*at).block_until_ready(), kernel.places())
    return KernelTiles(network, kernel.blocks, rows, tuple(tiles), diagonal)


@jax.jit
def _products(tile: Array, above: Array, beside: Array) -> tuple[Array, Array]:
    """Return the tile times `beside`, and its transpose times `above`."""

    def times(matrix, vectors):
        product = jnp.matmul(matrix, vectors.astype(tile.dtype), precision="highest")
        return product.astype(vectors.dtype)

    return times(tile, beside), times(tile.T, above)


def in_threads(function: Callable, items: Iterable) -> Iterable:
    """Map in one thread per core of a CPU, in order; a tile's program uses one core only."""
    threads = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(function, items)
