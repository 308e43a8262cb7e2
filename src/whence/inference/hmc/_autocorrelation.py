"""How long a chain remembers, from running sums."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ...core._types import Scalar
from ._metric import Vector


class Memory(eqx.Module):
    """Sums for lag-one autocorrelations, about the first value lest digits be lost."""

    count: Scalar
    first: Vector
    last: Vector
    total: Vector
    square: Vector
    product: Vector


def forget(first: Vector) -> Memory:
    """Return an empty memory that starts at a first value."""
    zeros = jnp.zeros_like(first)
    return Memory(jnp.zeros((), first.dtype), first, first, zeros, zeros, zeros)


def remember(memory: Memory, value: Vector) -> Memory:
    """Take one more value into account."""
    now, before = value - memory.first, memory.last - memory.first
    return Memory(
        count=memory.count + 1,
        first=memory.first,
        last=value,
        total=memory.total + now,
        square=memory.square + now**2,
        product=memory.product + now * before,
    )


def slowest_time(memory: Memory) -> float:
    """Estimate the longest integrated autocorrelation time as of an AR(1). In NumPy."""
    count, total, square, product = (
        np.asarray(x, np.float64)
        for x in (memory.count, memory.total, memory.square, memory.product)
    )
    mean = total / count
    with np.errstate(all="ignore"):
        correlation = (product / count - mean**2) / (square / count - mean**2)
    # One standard error off, since the largest of many estimates is too large.
    correlation = np.nan_to_num(correlation - count**-0.5, nan=1.0)
    correlation = np.clip(correlation, -0.5, 0.98)
    return float(np.max((1 + correlation) / (1 - correlation)))
