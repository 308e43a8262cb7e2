"""Resampling schemes: weights in, indices of ancestors out.

All are unbiased: particle i has N w_i children on average. They differ in the variance
of that number. Each inverts the cumulative weights at N points in [0, 1), and only the
points differ; residual resampling first hands out the integer parts of N w_i.

References:
    Douc, Cappe and Moulines (2005), doi:10.1109/ISPA.2005.195385.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from ...core._types import PRNGKey


class AbstractResampling(eqx.Module):
    """A resampling scheme."""

    @abc.abstractmethod
    def __call__(
        self, weights: Float[Array, " particle"], *, key: PRNGKey
    ) -> Int[Array, " particle"]:
        """Return the index of the parent of each particle.

        Args:
            weights: Normalised weights, shape `(particle,)`.
            key: For all that is random.
        """


class Systematic(AbstractResampling):
    """A grid with one random offset: floor or ceiling of N w_i children."""

    def __call__(self, weights, *, key):
        num = weights.shape[0]
        grid = jnp.arange(num).astype(weights.dtype)
        return _invert(weights, (grid + jr.uniform(key, (), weights.dtype)) / num)


class Stratified(AbstractResampling):
    """One uniform point in each of N equal intervals."""

    def __call__(self, weights, *, key):
        num = weights.shape[0]
        points = jr.uniform(key, (num,), weights.dtype)
        return _invert(weights, (jnp.arange(num).astype(weights.dtype) + points) / num)


class Multinomial(AbstractResampling):
    """Independent points; the most variable scheme, for theory and comparison."""

    def __call__(self, weights, *, key):
        # Normalised sums of N + 1 exponentials are N ordered uniforms, without a sort.
        gaps = jr.exponential(key, (weights.shape[0] + 1,), weights.dtype)
        sums = jnp.cumsum(gaps)
        return _invert(weights, sums[:-1] / sums[-1])


class Residual(AbstractResampling):
    """Every particle has floor(N w_i) children; the others are drawn from what remains."""

    def __call__(self, weights, *, key):
        num = weights.shape[0]
        expected = num * weights
        children = jnp.floor(expected).astype(jnp.int32)
        certain = jnp.repeat(jnp.arange(num), children, total_repeat_length=num)
        rest = expected - children.astype(weights.dtype)
        total = jnp.sum(rest)
        # Any of these may be wanted, so the points must not be in order.
        points = jr.uniform(key, (num,), weights.dtype)
        drawn = _invert(jnp.where(total > 0, rest / total, weights), points)
        is_certain = jnp.arange(num) < jnp.sum(children)
        return jnp.where(is_certain, certain, drawn.astype(certain.dtype))


SCHEMES: dict[str, AbstractResampling] = {
    "systematic": Systematic(),
    "stratified": Stratified(),
    "residual": Residual(),
    "multinomial": Multinomial(),
}


def _invert(
    weights: Float[Array, " particle"], points: Float[Array, " particle"]
) -> Int[Array, " particle"]:
    sums = jnp.cumsum(weights)
    ancestors = jnp.searchsorted(sums / sums[-1], points, side="right")
    # A point may round to 1: keep it off the particles of weight zero at the end.
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[0]), 0))
    return jnp.minimum(ancestors, last.astype(ancestors.dtype))
