"""Derivatives of a bilinear form of the kernel by its parameters, tile by tile."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..network._abstract_layer import AbstractLayer
from ._kernel import KernelTiles, in_threads


def evidence_gradient(
    kernel: KernelTiles, left: Float[Array, "rows columns"], right: Float[Array, "rows columns"]
) -> tuple[AbstractLayer, Array]:
    """Return the derivative of the sum over columns of `left' (K + noise I) right`.

    Returns:
        By the parameters of the network, in its own structure, and by the noise.
    """
    lefts, rights = kernel.split(left), kernel.split(right)

    def tile(place):
        i, j = place
        # Both tiles of the pair at once, as the kernel is symmetric.
        swapped = lefts[j] if i != j else jnp.zeros_like(lefts[i])
        ours = lefts[i], rights[j], swapped, rights[i]
        other = None if i == j else kernel.blocks[j]
        made = _tile(kernel.network, kernel.blocks[i], other, *ours)
        return jax.block_until_ready(made)

    total = None
    for part in in_threads(tile, kernel.places()):
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    assert total is not None
    return total, jnp.sum(left * right)


@eqx.filter_jit
def _tile(network, x1, x2, left1, right2, left2, right1):
    def form(network):
        matrix = network.nngp(x1, x2)
        weights = left1 @ right2.T + right1 @ left2.T
        return jnp.sum(matrix * weights.astype(matrix.dtype))

    return eqx.filter_grad(form)(network)
