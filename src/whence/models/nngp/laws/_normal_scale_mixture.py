"""Normal laws mixed over one scale: joint, and the marginals of each entry."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints

from ._shared import AbstractJoint, AbstractMarginals, log_weight


class NormalScaleMixture(AbstractJoint):
    """`sum_k w_k N(loc, v_k L L')`: one scale for all entries.

    Entries are dependent even where the covariance is diagonal. Moments that the law of the
    scale does not have are reported as infinite (variance) or NaN (mean), although those of
    the nodes exist.

    Args:
        loc: Location, shape `(dim,)`.
        scale_tril: Lower triangular factor L, shape `(dim, dim)`.
        log_scales: log v of the nodes.
        log_weights: Of the nodes, in nats; they are normalised.
        tail: Moments of v of an order below it exist.
        posterior: Law of v that the nodes stand for, a `ScalePosterior`. With it the density
            is exact: many entries say more of v than nodes spread for it can follow.
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale_tril": constraints.real_matrix,
        "log_scales": constraints.real_vector,
        "log_weights": log_weight(1),
        "tail": constraints.positive,
    }
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    pytree_data_fields = (*arg_constraints, "posterior")

    def __init__(
        self,
        loc,
        scale_tril,
        log_scales,
        log_weights,
        tail=jnp.inf,
        posterior=None,
        *,
        validate_args=None,
    ):
        self.posterior = posterior
        self.loc, self.scale_tril = loc, scale_tril
        self.log_scales = log_scales
        self.log_weights = jax.nn.log_softmax(log_weights)
        self.tail = jnp.asarray(tail, loc.dtype)
        super().__init__((), loc.shape[-1:], validate_args=validate_args)

    def log_prob(self, value, intermediates=None):
        """Return the joint log density."""
        solve = jax.scipy.linalg.solve_triangular
        residual = jnp.moveaxis(jnp.atleast_2d(value - self.loc), -1, 0)
        white = solve(self.scale_tril, residual.reshape(residual.shape[0], -1), lower=True)
        distance = jnp.sum(white**2, axis=0).reshape(jnp.shape(value)[:-1])
        dim = self.loc.shape[-1]
        log_det = jnp.sum(jnp.log(jnp.diagonal(self.scale_tril)))
        if self.posterior is not None:
            constant = dim / 2 * jnp.log(2 * jnp.pi) + log_det
            return self.posterior.log_ratio(dim, distance) - constant
        normal = -dim / 2 * (jnp.log(2 * jnp.pi) + self.log_scales) - log_det
        exponent = distance[..., None] / 2 * jnp.exp(-self.log_scales)
        return logsumexp(self.log_weights + normal - exponent, axis=-1)

    def sample(self, key: Any, sample_shape=()):
        """Draw from the mixture of the nodes."""
        key_node, key_normal = jr.split(key)
        node = jr.categorical(key_node, self.log_weights, shape=sample_shape)
        white = jr.normal(key_normal, (*sample_shape, *self.event_shape), self.loc.dtype)
        deviation = jnp.exp(self.log_scales[node] / 2)[..., None]
        return self.loc + deviation * (white @ self.scale_tril.T)

    def marginals(self) -> "ScaleMixtureMarginals":
        """Return the law of each entry by itself."""
        deviations = jnp.sqrt(jnp.sum(self.scale_tril**2, axis=-1))
        return ScaleMixtureMarginals(
            self.loc, deviations, self.log_scales, self.log_weights, self.tail
        )


class ScaleMixtureMarginals(AbstractMarginals):
    """`sum_k w_k N(loc, v_k scale^2)` for single numbers; entries of a batch independent.

    Args:
        loc: Locations, any shape.
        scale: Positive, of the same shape.
        log_scales: log v of the nodes.
        log_weights: Of the nodes, in nats; they are normalised.
        tail: Moments of v of an order below it exist.
    """

    arg_constraints = {
        "loc": constraints.real,
        "scale": constraints.nonnegative,
        "log_scales": constraints.real_vector,
        "log_weights": log_weight(1),
        "tail": constraints.positive,
    }

    def __init__(
        self, loc, scale, log_scales, log_weights, tail=jnp.inf, *, validate_args=None
    ):
        self.loc, self.scale = loc, scale
        self.log_scales = log_scales
        self.log_weights = jax.nn.log_softmax(log_weights)
        self.tail = jnp.asarray(tail, loc.dtype)
        super().__init__(jnp.shape(loc), (), validate_args=validate_args)

    def _nodes(self):
        return self.loc[None], self.scale[None], self.log_scales[None], self.log_weights[None]
