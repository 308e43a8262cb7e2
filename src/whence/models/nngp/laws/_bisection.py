"""Quantiles of mixtures by bisection, in one program for all mixtures of a shape."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.jit
def bisected(mixture: Any, q: Array, low: Array, high: Array) -> Float[Array, "..."]:
    """Return where the distribution function reaches `q`, between two ends."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = mixture.cdf(middle) < q
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 200, halve, (low, high))
    return (low + high) / 2
