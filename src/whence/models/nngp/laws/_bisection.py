"""What mixtures share: moments by entry, and quantiles, in one program for all of a shape."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints


def log_weight(ndim: int) -> Any:
    """Return the constraint of log weights, of which minus infinity is one."""
    return constraints.independent(constraints.less_than(math.inf), ndim)


class AbstractJoint(dist.Distribution):
    """A joint law whose moments are those of its `marginals`."""

    marginals: Callable[[], dist.Distribution]

    @property
    def mean(self):
        """Mean, NaN where the law has none."""
        return self.marginals().mean

    @property
    def variance(self):
        """Marginal variances, infinite where the law has none."""
        return self.marginals().variance


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
