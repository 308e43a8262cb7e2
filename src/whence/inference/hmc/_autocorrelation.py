"""How long a chain remembers, from running sums."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax

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


def slowest_time(memory: Memory) -> Scalar:
    """Estimate the longest integrated autocorrelation time, in draws, as of an AR(1)."""
    mean = memory.total / memory.count
    variance = memory.square / memory.count - mean**2
    correlation = (memory.product / memory.count - mean**2) / variance
    # One standard error off, since the largest of many estimates is too large.
    correlation = correlation - lax.rsqrt(memory.count)
    correlation = jnp.where(jnp.isnan(correlation), 1, correlation)
    correlation = jnp.clip(correlation, -0.5, 0.98)
    return jnp.max((1 + correlation) / (1 - correlation))
