"""Programs that draw from the prior of a described target, and data given each draw."""

from typing import Any

import jax
import jax.random as jr


def draw_prior_and_data(target: Any, key: Any, number: int) -> tuple[dict[str, Any], Any]:
    """Return latents and derived values, and data, `(draw, ...)` by name."""

    def one(key):
        key_prior, key_data = jr.split(key)
        draw = target.sample_prior(key=key_prior)
        return target.variables(draw), target.predict(draw, None, key=key_data)

    return jax.vmap(one)(jr.split(key, number))


def draw_prior(target: Any, key: Any, number: int) -> tuple[dict[str, Any], None]:
    """As `draw_prior_and_data`, without data."""

    def one(key):
        return target.variables(target.sample_prior(key=key))

    return jax.vmap(one)(jr.split(key, number)), None
