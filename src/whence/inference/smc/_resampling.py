"""Resampling schemes: weights in, indices of ancestors out.

All are unbiased: particle i has N w_i children on average. They differ in the variance
of that number. Each inverts the cumulative weights at N points in [0, 1), and only the
points differ; residual resampling first hands out the integer parts of N w_i.

References:
    Douc, Cappe and Moulines (2005), doi:10.1109/ISPA.2005.195385.
"""

from collections.abc import Callable

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from ...core._types import PRNGKey


def systematic(weights: Float[Array, " particle"], *, key: PRNGKey) -> Int[Array, " particle"]:
    """Resample at a grid with one random offset: floor or ceiling of N w_i children.

    Args:
        weights: Normalised weights, shape `(particle,)`.
        key: For the offset.
    """
    num = weights.shape[0]
    return _invert(weights, (jnp.arange(num) + jr.uniform(key, (), weights.dtype)) / num)


def stratified(weights: Float[Array, " particle"], *, key: PRNGKey) -> Int[Array, " particle"]:
    """Resample at one uniform point in each of N equal intervals.

    Args:
        weights: Normalised weights, shape `(particle,)`.
        key: For the points.
    """
    num = weights.shape[0]
    return _invert(weights, (jnp.arange(num) + jr.uniform(key, (num,), weights.dtype)) / num)


def multinomial(weights: Float[Array, " particle"], *, key: PRNGKey) -> Int[Array, " particle"]:
    """Resample independently; the most variable scheme, for theory and comparison.

    Args:
        weights: Normalised weights, shape `(particle,)`.
        key: For the points.
    """
    # Normalised sums of N + 1 exponentials are N ordered uniforms, without a sort.
    gaps = jr.exponential(key, (weights.shape[0] + 1,), weights.dtype)
    sums = jnp.cumsum(gaps)
    return _invert(weights, sums[:-1] / sums[-1])


def residual(weights: Float[Array, " particle"], *, key: PRNGKey) -> Int[Array, " particle"]:
    """Give every particle floor(N w_i) children and draw the others from what remains.

    Args:
        weights: Normalised weights, shape `(particle,)`.
        key: For the multinomial draw of the remainder.
    """
    num = weights.shape[0]
    expected = num * weights
    children = jnp.floor(expected).astype(jnp.int32)
    certain = jnp.repeat(jnp.arange(num), children, total_repeat_length=num)
    rest = expected - children
    total = jnp.sum(rest)
    # Any of these may be wanted, so the points must not be in order.
    points = jr.uniform(key, (num,), weights.dtype)
    drawn = _invert(jnp.where(total > 0, rest / total, weights), points)
    return jnp.where(jnp.arange(num) < jnp.sum(children), certain, drawn)


SCHEMES: dict[str, Callable[..., Int[Array, " particle"]]] = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
}


def _invert(
    weights: Float[Array, " particle"], points: Float[Array, " particle"]
) -> Int[Array, " particle"]:
    sums = jnp.cumsum(weights)
    ancestors = jnp.searchsorted(sums / sums[-1], points, side="right")
    # A point may round to 1: keep it off the particles of weight zero at the end.
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[0]), 0))
    return jnp.minimum(ancestors, last)
