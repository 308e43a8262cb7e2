"""Where parameters may start that particle filters judge: they walk there without gradients."""

from typing import Any

import jax
import jax.random as jr

from ..core._types import PRNGKey
from ..language._condition import ModelTarget


def prior_start(target: ModelTarget, *, key: PRNGKey) -> Any:
    """Return a position: for one key in two a draw of the prior, else of `target.init`.

    A prior knows the units of its parameters, unless it is vague. Where it has no sampler, or a
    latent says where it starts, all are of `target.init`.
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
