"""What mixtures of normal laws share: entries by themselves, their moments and quantiles."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from jax.scipy.special import logsumexp, ndtr, ndtri
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


class AbstractMarginals(dist.Distribution):
    """`sum_kj w_kj N(loc_k, v_kj scale_k^2)` for single numbers, independent in a batch."""

    tail: Array
    support = constraints.real  # pyright: ignore[reportAssignmentType]

    def _nodes(self):
        """Return locations, scales, log v and log weights; nodes k along the first axis."""
        raise NotImplementedError

    def _over_nodes(self, function, start):
        """Add up `function(loc, deviation, log_weight)` over nodes, one node at a time."""

        def add(total, part):
            loc, scale, log_scales, log_weights = part
            deviations = scale[..., None] * jnp.exp(log_scales / 2)
            return function(total, loc[..., None], deviations, log_weights), None

        return jax.lax.scan(add, start, self._nodes())[0]

    def log_prob(self, value, intermediates=None):
        """Return log densities."""
        shape = jnp.broadcast_shapes(jnp.shape(value), self.batch_shape)
        value = jnp.broadcast_to(value, shape)[..., None]

        def add(total, loc, deviations, log_weights):
            normal = -(((value - loc) / deviations) ** 2) / 2 - jnp.log(deviations)
            node = logsumexp(log_weights + normal - jnp.log(2 * jnp.pi) / 2, axis=-1)
            return jnp.logaddexp(total, node)

        return self._over_nodes(add, jnp.full(shape, -jnp.inf, self.tail.dtype))

    def cdf(self, value):
        """Return the distribution function."""
        shape = jnp.broadcast_shapes(jnp.shape(value), self.batch_shape)
        value = jnp.broadcast_to(value, shape)[..., None]

        def add(total, loc, deviations, log_weights):
            return total + ndtr((value - loc) / deviations) @ jnp.exp(log_weights)

        return self._over_nodes(add, jnp.zeros(shape, self.tail.dtype))

    def icdf(self, q):
        """Return quantiles, by bisection of the distribution function."""
        shape = jnp.broadcast_shapes(jnp.shape(q), self.batch_shape)
        z = jnp.broadcast_to(ndtri(q), shape)[..., None]

        # The mixture's quantile lies between those of its nodes.
        def widen(ends, loc, deviations, log_weights):
            there = jnp.exp(log_weights) > 0
            low = jnp.where(there, loc + deviations * z, jnp.inf).min(-1)
            high = jnp.where(there, loc + deviations * z, -jnp.inf).max(-1)
            return jnp.minimum(ends[0], low), jnp.maximum(ends[1], high)

        infinite = jnp.full(shape, jnp.inf, self.tail.dtype)
        low, high = self._over_nodes(widen, (infinite, -infinite))
        return bisected(self, q, low, high)

    def sample(self, key: Any, sample_shape=()):
        """Draw each entry with a node and a scale of its own."""
        key_node, key_normal = jr.split(key)
        shape = (*sample_shape, *self.batch_shape)
        locs, scales, log_scales, log_weights = self._nodes()
        node, log_scale = drawn(log_scales, log_weights, key_node, shape)
        entry = jnp.indices(shape)[len(sample_shape) :]
        white = jr.normal(key_normal, shape, self.tail.dtype)
        at = (node, *entry)
        return locs[at] + scales[at] * jnp.exp(log_scale / 2) * white

    @property
    def mean(self):
        """Means, NaN where the law has none."""
        locs, _, _, log_weights = self._nodes()
        weights = jnp.exp(logsumexp(log_weights, axis=-1))
        return jnp.where(self.tail > 0.5, jnp.tensordot(weights, locs, 1), jnp.nan)

    @property
    def variance(self):
        """Variances, infinite where the law has none."""
        locs, scales, log_scales, log_weights = self._nodes()
        weights = jnp.exp(log_weights)
        mean_scale = jnp.sum(weights * jnp.where(weights > 0, jnp.exp(log_scales), 0), axis=-1)
        within = jnp.tensordot(mean_scale, scales**2, 1)
        share = jnp.sum(weights, axis=-1)
        between = jnp.tensordot(share, (locs - jnp.tensordot(share, locs, 1)) ** 2, 1)
        return jnp.where(self.tail > 1, within + between, jnp.inf)


def normalised(log_weights):
    """Return log weights whose sum over all nodes and scales is one."""
    return log_weights - logsumexp(log_weights)


def drawn(log_scales, log_weights, key, shape):
    """Draw nodes, and log v of each."""
    flat = jr.categorical(key, log_weights.reshape(-1), shape=shape)
    return flat // log_weights.shape[1], log_scales.reshape(-1)[flat]


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
