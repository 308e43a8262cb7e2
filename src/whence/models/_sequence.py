"""The posterior of a model of a sequence, as engines with particles see it: its parameters."""

from typing import Any

import equinox as eqx
import jax
import jax.random as jr

from ..core._feynman_kac import AbstractSequenceTarget
from ..core._types import PRNGKey
from ..language._condition import ModelTarget


class AbstractModelSequence(AbstractSequenceTarget):
    """A sequence whose parameters are those of a target without hidden states."""

    parameters: eqx.AbstractVar[ModelTarget]

    def init(self, *, key):
        return _prior_start(self.parameters, key=key)

    def constrain(self, position):
        return self.parameters.constrain(position)

    def unconstrain(self, draw):
        """Return the position of the parameters of a draw, or of their values by name."""
        return self.parameters.unconstrain(draw)

    def log_prior(self, position):
        return self.parameters.log_prior(position)

    def sample_prior_position(self, *, key):
        """Return one draw of the parameters from their prior, in unconstrained space."""
        return self.parameters.sample_prior_position(key=key)


def _prior_start(target: ModelTarget, *, key: PRNGKey) -> Any:
    """Return a position: for one key in two a draw of the prior, else of `target.init`.

    Particle filters walk from there without gradients. A prior knows the units of its
    parameters, unless it is vague. Where it has no sampler, or a latent says where it starts,
    all are of `target.init`.
    """
    key_init, key_prior, key_which = jr.split(key, 3)
    position = target.init(key=key_init)
    if any(site.starts for site in target.free):
        return position
    try:
        drawn = target.sample_prior_position(key=key_prior)
    except (ValueError, NotImplementedError):
        return position
    return jax.lax.cond(jr.bernoulli(key_which), lambda: drawn, lambda: position)
