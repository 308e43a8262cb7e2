"""Draws from the prior of a target, and of data given them."""

from typing import Any

import jax
import jax.random as jr
import numpy as np

from ._cache import compiled


def prior_draws(target: Any, key: Any, number: int) -> tuple[dict[str, Any], Any]:
    """Return latents and derived values, and data, `(draw, ...)` by name.

    Args:
        target: A described target.
        key: A typed key.
        number: Number of draws.

    Returns:
        Variables, and data or None if the model has no sampler of them.

    Raises:
        ValueError: If the prior is improper.
        NotImplementedError: If it cannot be sampled.
    """
    try:
        program = compiled(_with_data, target, key, number)
    except NotImplementedError:
        program = compiled(_without_data, target, key, number)
    return jax.tree.map(np.asarray, program.call(target, key, number))


def _with_data(target, key, number):
    def one(key):
        key_prior, key_data = jr.split(key)
        draw = target.sample_prior(key=key_prior)
        return target.variables(draw), target.predict(draw, None, key=key_data)

    return jax.vmap(one)(jr.split(key, number))


def _without_data(target, key, number):
    def one(key):
        return target.variables(target.sample_prior(key=key))

    return jax.vmap(one)(jr.split(key, number)), None
