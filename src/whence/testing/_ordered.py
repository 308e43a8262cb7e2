"""Normals in increasing order, which numpyro does not have."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints

from ..core._types import PRNGKey


class OrderedNormal(dist.Distribution):
    """Independent normals conditioned on being in increasing order, and perhaps positive.

    `log_prob` leaves the probability of the condition out, a constant.

    Args:
        loc: Means before the condition, shape `(dim,)`.
        scale: Standard deviations before the condition, broadcast to `loc`.
        positive: Whether all entries must be positive.
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.positive}
    pytree_data_fields = ("loc", "scale")
    pytree_aux_fields = ("positive",)

    def __init__(self, loc, scale, *, positive: bool = False, validate_args=None):
        """Keep the parameters."""
        self.loc = jnp.asarray(loc, float)
        self.scale = jnp.asarray(scale, float)
        self.positive = positive
        dist.Distribution.__init__(self, (), self.loc.shape, validate_args=validate_args)

    @property
    def support(self):
        """Ordered vectors, perhaps of positive numbers."""
        if self.positive:
            return constraints.positive_ordered_vector
        return constraints.ordered_vector

    def log_prob(self, value):
        """Sum of the normal log densities."""
        return dist.Normal(self.loc, self.scale).log_prob(value).sum(-1)

    def sample(self, key, sample_shape=()):
        """Draw by rejection."""
        assert key is not None
        keys = jr.split(key, sample_shape)
        draw = self._sample_one
        for _ in sample_shape:
            draw = jax.vmap(draw)
        return draw(keys)

    def _sample_one(self, key: PRNGKey) -> Array:
        def propose(carry):
            key_next, key_now = jr.split(carry[0])
            return key_next, self.loc + self.scale * jr.normal(key_now, self.loc.shape)

        def rejected(carry):
            return jnp.logical_not(self.support(carry[1]))

        return jax.lax.while_loop(rejected, propose, propose((key, self.loc)))[1]
