"""Normal laws mixed over nodes that differ in location and covariance, and over scales."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp, ndtr, ndtri
from numpyro.distributions import constraints

from ._bisection import AbstractJoint, bisected, log_weight


class NormalMixture(AbstractJoint):
    """`sum_kj w_kj N(loc_k, v_kj L_k L_k')`: nodes k, and scales j of each.

    All entries share node and scale. Moments that the law behind the nodes does not have are
    reported as infinite (variance) or NaN (mean), although those of the nodes exist.

    Args:
        locs: Locations, shape `(node, dim)`.
        scale_trils: Lower triangular factors L, shape `(node, dim, dim)`.
        log_scales: log v, shape `(node, scale)`.
        log_weights: Of nodes and scales, in nats, of the same shape; they are normalised.
        tail: Moments of v of an order below it exist.
    """

    arg_constraints = {
        "locs": constraints.real_matrix,
        "scale_trils": constraints.independent(constraints.real, 3),
        "log_scales": constraints.real_matrix,
        "log_weights": log_weight(2),
        "tail": constraints.positive,
    }
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(
        self, locs, scale_trils, log_scales, log_weights, tail=jnp.inf, *, validate_args=None
    ):
        self.locs, self.scale_trils = locs, scale_trils
        self.log_scales, self.log_weights = log_scales, normalised(log_weights)
        self.tail = jnp.asarray(tail, locs.dtype)
        super().__init__((), locs.shape[-1:], validate_args=validate_args)

    def log_prob(self, value, intermediates=None):
        """Return the joint log density."""
        dim = self.locs.shape[-1]
        flat = jnp.asarray(value).reshape(-1, dim)

        def node(part):
            loc, tril, log_scales, log_weights = part
            white = solve_triangular(tril, (flat - loc).T, lower=True)
            distance = jnp.sum(white**2, axis=0)[:, None]
            log_det = jnp.sum(jnp.log(jnp.diagonal(tril)))
            normal = -dim / 2 * (jnp.log(2 * jnp.pi) + log_scales) - log_det
            return logsumexp(
                log_weights + normal - distance / 2 * jnp.exp(-log_scales), axis=-1
            )

        parts = self.locs, self.scale_trils, self.log_scales, self.log_weights
        densities = logsumexp(jax.lax.map(node, parts), axis=0)
        return densities.reshape(jnp.shape(value)[:-1])

    def sample(self, key: Any, sample_shape=()):
        """Draw from the mixture."""
        return self.sample_with_scale(key, sample_shape)[0]

    def sample_with_scale(self, key: Any, sample_shape=()):
        """Draw from the mixture; return draws, the node k of each, and its scale v.

        Args:
            key: Random key.
            sample_shape: Axes before the event's.
        """
        key_node, key_normal = jr.split(key)
        node, log_scale = _drawn(self, key_node, sample_shape)
        deviation = jnp.exp(log_scale / 2)
        white = jr.normal(key_normal, (*sample_shape, *self.event_shape), self.locs.dtype)

        def one(part):
            node, deviation, white = part
            return self.locs[node] + deviation * (self.scale_trils[node] @ white)

        flat = node.reshape(-1), deviation.reshape(-1), white.reshape(-1, *self.event_shape)
        drawn = jax.lax.map(one, flat, batch_size=64)
        return drawn.reshape(white.shape), node, jnp.exp(log_scale)

    def marginals(self) -> "NormalMixtureMarginals":
        """Return the law of each entry by itself."""
        deviations = jnp.sqrt(jnp.sum(self.scale_trils**2, axis=-1))
        return NormalMixtureMarginals(
            self.locs, deviations, self.log_scales, self.log_weights, self.tail
        )


class NormalMixtureMarginals(dist.Distribution):
    """`sum_kj w_kj N(loc_k, v_kj scale_k^2)` for single numbers, independent in a batch.

    Args:
        locs: Locations, nodes first, then any shape.
        scales: Positive, of the same shape.
        log_scales: log v, shape `(node, scale)`.
        log_weights: Of nodes and scales, in nats, of the same shape; they are normalised.
        tail: Moments of v of an order below it exist.
    """

    arg_constraints = {
        "locs": constraints.real,
        "scales": constraints.nonnegative,
        "log_scales": constraints.real_matrix,
        "log_weights": log_weight(2),
        "tail": constraints.positive,
    }
    support = constraints.real  # pyright: ignore[reportAssignmentType]

    def __init__(
        self, locs, scales, log_scales, log_weights, tail=jnp.inf, *, validate_args=None
    ):
        self.locs, self.scales = locs, scales
        self.log_scales, self.log_weights = log_scales, normalised(log_weights)
        self.tail = jnp.asarray(tail, locs.dtype)
        super().__init__(jnp.shape(locs)[1:], (), validate_args=validate_args)

    def _over_nodes(self, function, start):
        """Add up `function(loc, deviation, log_weight)` over nodes, one node at a time."""

        def add(total, part):
            loc, scale, log_scales, log_weights = part
            deviations = scale[..., None] * jnp.exp(log_scales / 2)
            return function(total, loc[..., None], deviations, log_weights), None

        parts = self.locs, self.scales, self.log_scales, self.log_weights
        return jax.lax.scan(add, start, parts)[0]

    def log_prob(self, value, intermediates=None):
        """Return log densities."""
        shape = jnp.broadcast_shapes(jnp.shape(value), self.batch_shape)
        value = jnp.broadcast_to(value, shape)[..., None]

        def add(total, loc, deviations, log_weights):
            normal = -(((value - loc) / deviations) ** 2) / 2 - jnp.log(deviations)
            node = logsumexp(log_weights + normal - jnp.log(2 * jnp.pi) / 2, axis=-1)
            return jnp.logaddexp(total, node)

        return self._over_nodes(add, jnp.full(shape, -jnp.inf, self.locs.dtype))

    def cdf(self, value):
        """Return the distribution function."""
        shape = jnp.broadcast_shapes(jnp.shape(value), self.batch_shape)
        value = jnp.broadcast_to(value, shape)[..., None]

        def add(total, loc, deviations, log_weights):
            return total + ndtr((value - loc) / deviations) @ jnp.exp(log_weights)

        return self._over_nodes(add, jnp.zeros(shape, self.locs.dtype))

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

        infinite = jnp.full(shape, jnp.inf, self.locs.dtype)
        low, high = self._over_nodes(widen, (infinite, -infinite))
        return bisected(self, q, low, high)

    def sample(self, key: Any, sample_shape=()):
        """Draw each entry with a node and a scale of its own."""
        key_node, key_normal = jr.split(key)
        shape = (*sample_shape, *self.batch_shape)
        node, log_scale = _drawn(self, key_node, shape)
        entry = jnp.indices(shape)[len(sample_shape) :]
        white = jr.normal(key_normal, shape, self.locs.dtype)
        at = (node, *entry)
        return self.locs[at] + self.scales[at] * jnp.exp(log_scale / 2) * white

    @property
    def mean(self):
        """Means, NaN where the law has none."""
        weights = jnp.exp(logsumexp(self.log_weights, axis=-1))
        return jnp.where(self.tail > 0.5, jnp.tensordot(weights, self.locs, 1), jnp.nan)

    @property
    def variance(self):
        """Variances, infinite where the law has none."""
        weights = jnp.exp(self.log_weights)
        scales = jnp.sum(weights * jnp.where(weights > 0, jnp.exp(self.log_scales), 0), axis=-1)
        within = jnp.tensordot(scales, self.scales**2, 1)
        share = jnp.sum(weights, axis=-1)
        between = jnp.tensordot(share, (self.locs - jnp.tensordot(share, self.locs, 1)) ** 2, 1)
        return jnp.where(self.tail > 1, within + between, jnp.inf)


def normalised(log_weights):
    """Return log weights whose sum over all nodes and scales is one."""
    return log_weights - logsumexp(log_weights)


def _drawn(mixture, key, shape):
    """Draw nodes, and log v of each."""
    flat = jr.categorical(key, mixture.log_weights.reshape(-1), shape=shape)
    node = flat // mixture.log_weights.shape[1]
    return node, mixture.log_scales.reshape(-1)[flat]
