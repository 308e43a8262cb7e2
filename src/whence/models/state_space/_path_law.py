"""The law of a whole path of hidden states, as a distribution: the prior of `states`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from ._parts import law, log_prob, simulate


class PathLaw(dist.Distribution):
    """States `x_0, ..., x_{T-1}` of a state-space model that know no data."""

    def __init__(self, model: Any, length: int, inputs: Any):
        """Keep the model."""
        self.model, self.length, self.inputs = model, length, inputs
        self.first = law(model, "initial")
        super().__init__(event_shape=(length, *self.first.shape()))

    @property
    def support(self):
        """Where each state may be, at all times."""
        one: Any = self.first.support
        return constraints.independent(one, len(self.event_shape) - one.event_dim)

    def sample(self, key, sample_shape=()):
        """Return one path."""
        assert sample_shape == ()
        return simulate(self.model, self.length, self.inputs, key=key)

    def log_prob(self, value: Any, intermediates: Any = None):
        """Return the log density of a path, in nats."""
        del intermediates
        times = jnp.arange(1, self.length, dtype=jnp.int32)
        inputs = jax.tree.map(lambda v: v[1:], self.inputs)

        def move(before, after, t, inputs):
            return log_prob(law(self.model, "transition", before, t, inputs), after)

        moves = jax.vmap(move)(value[:-1], value[1:], times, inputs)
        return log_prob(self.first, value[0]) + jnp.sum(moves)
