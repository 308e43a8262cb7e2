"""Second moments of the units of one layer, for blocks of inputs and their pixels."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


class SecondMoments(eqx.Module):
    """Kernel and tangent kernel at one layer, for one kind of pair.

    Axes: first the inputs (one axis for an input with itself, two for pairs of inputs),
    then the pixels: none for vectors, `spatial` axes where both members of a pair are at the
    same pixel, twice as many where `pairs`.
    """

    nngp: Array
    ntk: Array | None  # None where it is not wanted
    spatial: int = eqx.field(static=True)
    pairs: bool = eqx.field(static=True)


class KernelState(eqx.Module):
    """What a layer maps: pairs of inputs, and each input with itself.

    Variances of single inputs are carried, never read off the pairs: there they would be
    known to rounding only, and the arc cosine turns a relative error e into sqrt(e).
    """

    cross: SecondMoments  # rows, columns
    left: SecondMoments  # rows
    right: SecondMoments  # columns
    left_pairs: SecondMoments | None  # rows, over pairs of pixels; only where pooling needs it
    right_pairs: SecondMoments | None
    # Whether units are Gaussian and alike. Activations need it: the sum of a Gaussian unit
    # and of what an activation gave has other moments than its kernel says.
    gaussian: bool = eqx.field(static=True)


def inputs_state(x1: Array, x2: Array, *, pairs: bool, ntk: bool) -> KernelState:
    """Return the moments of raw inputs, `(rows, *spatial, channels)`: means over channels."""
    spatial = x1.ndim - 2
    pairs = pairs and spatial > 0
    p, q = "uvw"[:spatial], "xyz"[:spatial] if pairs else "uvw"[:spatial]
    product = p + (q if pairs else "")

    def moments(equation, a, b, is_pairs):
        # The default precision of a GPU's matrix product has 10 bits; kernels need all.
        value = jnp.einsum(equation, a, b, precision="highest") / a.shape[-1]
        return SecondMoments(value, jnp.zeros_like(value) if ntk else None, spatial, is_pairs)

    def own(x):
        return moments(f"m{p}c,m{p}c->m{p}", x, x, False)

    def own_pairs(x):
        return moments(f"m{p}c,m{q}c->m{product}", x, x, True) if pairs else None

    cross = moments(f"m{p}c,n{q}c->mn{product}", x1, x2, pairs)
    return KernelState(cross, own(x1), own(x2), own_pairs(x1), own_pairs(x2), False)


def map_moments(
    function: Callable[[SecondMoments], SecondMoments], state: KernelState
) -> KernelState:
    """Apply a linear map to every kind of pair."""
    return jax.tree.map(function, state, is_leaf=lambda x: isinstance(x, SecondMoments))


def affine(
    moments: SecondMoments, weight_variance: Array, bias_variance: Array
) -> SecondMoments:
    """Apply a layer of Gaussian weights and biases in NTK parameterisation.

    References:
        Jacot, Gabriel, Hongler (2018), Neural tangent kernel, arXiv:1806.07572, theorem 1.
    """
    weight = weight_variance.astype(moments.nngp.dtype)
    nngp = bias_variance.astype(moments.nngp.dtype) + weight * moments.nngp
    ntk = None if moments.ntk is None else nngp + weight * moments.ntk
    return SecondMoments(nngp, ntk, moments.spatial, moments.pairs)


def as_gaussian(state: KernelState, gaussian: bool) -> KernelState:
    """Return a state with the flag set."""
    parts = state.cross, state.left, state.right, state.left_pairs, state.right_pairs
    return KernelState(*parts, gaussian)


def with_arrays(moments: SecondMoments, function: Callable[[Array], Array]) -> SecondMoments:
    """Apply a linear map of arrays to both kernels."""
    ntk = None if moments.ntk is None else function(moments.ntk)
    return SecondMoments(function(moments.nngp), ntk, moments.spatial, moments.pairs)


def pool(moments: SecondMoments, *, diagonal: bool) -> SecondMoments:
    """Average over pixels, or over pairs of pixels; the result is of vectors."""
    count = moments.spatial * (2 if moments.pairs else 1)

    def average(x: Array) -> Array:
        batch = x.shape[: x.ndim - count]
        if moments.pairs and diagonal:
            x = jnp.diagonal(flat_pairs(x, moments.spatial), axis1=-2, axis2=-1)
        return x.reshape(*batch, -1).mean(axis=-1)

    ntk = None if moments.ntk is None else average(moments.ntk)
    return SecondMoments(average(moments.nngp), ntk, 0, False)


def flat_pairs(x: Array, spatial: int) -> Array:
    """Return `x` with pairs of pixels as a square matrix in the last two axes."""
    size = math.prod(x.shape[x.ndim - 2 * spatial : x.ndim - spatial])
    return x.reshape(*x.shape[: x.ndim - 2 * spatial], size, size)


def pixel_diagonal(shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Return where both members of a pair are the same pixel."""
    return jnp.eye(math.prod(shape), dtype=bool).reshape(*shape, *shape)


def average_windows(
    x: Array, window: tuple[int, ...], stride: tuple[int, ...], *, pairs: bool
) -> Array:
    """Average over the window of a convolution, zero outside of the image.

    Both members of a pair move together. The zeros count in the average, as they do in the
    fan-in of the network.

    Args:
        x: Pixels last: `len(window)` axes, or twice as many.
        window: Pixels along each axis.
        stride: Steps along each axis.
        pairs: Whether the last axes are those of two pixels.
    """
    spatial = len(window)
    first = x.ndim - spatial * (2 if pairs else 1)
    for i, (length, step) in enumerate(zip(window, stride)):
        axes = (first + i, first + spatial + i) if pairs else (first + i,)
        size = x.shape[axes[0]]
        count = -(-size // step)
        # "SAME" padding: as little as gives every stride its window, less of it before.
        padding = max((count - 1) * step + length - size, 0)
        widths = [(0, 0)] * x.ndim
        for axis in axes:
            widths[axis] = (padding // 2, padding - padding // 2)
        padded = jnp.pad(x, widths)
        total = 0
        for offset in range(length):
            shifted = padded
            for axis in axes:
                stop = offset + (count - 1) * step + 1
                shifted = jax.lax.slice_in_dim(shifted, offset, stop, step, axis)
            total = total + shifted
        x = jnp.asarray(total) / length
    return x
