"""Normal laws mixed over nodes that differ in location and covariance, and over scales."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints

from ._shared import AbstractJoint, AbstractMarginals, drawn, log_weight, normalised


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
        """Draw from the mixture; return draws, the node k of each, and its scale v."""
        key_node, key_normal = jr.split(key)
        node, log_scale = drawn(self.log_scales, self.log_weights, key_node, sample_shape)
        deviation = jnp.exp(log_scale / 2)
        white = jr.normal(key_normal, (*sample_shape, *self.event_shape), self.locs.dtype)

        def one(part):
            node, deviation, white = part
            return self.locs[node] + deviation * (self.scale_trils[node] @ white)

        flat = node.reshape(-1), deviation.reshape(-1), white.reshape(-1, *self.event_shape)
        found = jax.lax.map(one, flat, batch_size=64)
        return found.reshape(white.shape), node, jnp.exp(log_scale)

    def marginals(self) -> "NormalMixtureMarginals":
        """Return the law of each entry by itself."""
        deviations = jnp.sqrt(jnp.sum(self.scale_trils**2, axis=-1))
        return NormalMixtureMarginals(
            self.locs, deviations, self.log_scales, self.log_weights, self.tail
        )


class NormalMixtureMarginals(AbstractMarginals):
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

    def __init__(
        self, locs, scales, log_scales, log_weights, tail=jnp.inf, *, validate_args=None
    ):
        self.locs, self.scales = locs, scales
        self.log_scales, self.log_weights = log_scales, normalised(log_weights)
        self.tail = jnp.asarray(tail, locs.dtype)
        super().__init__(jnp.shape(locs)[1:], (), validate_args=validate_args)

    def _nodes(self):
        return self.locs, self.scales, self.log_scales, self.log_weights
