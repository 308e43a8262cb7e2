"""Data drawn of a likelihood."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from ..core._dtype import relaxed
from ..core._types import PRNGKey


@relaxed()
def draw_data(likelihood: Any, key: PRNGKey, like: Mapping[str, Any] | None = None) -> Any:
    """Return data drawn of a distribution, or of a dict of them.

    Args:
        likelihood: What `likelihood` of a model returned.
        key: A typed key.
        like: Data whose shapes they get, by name: one distribution may be that of each row.
    """
    if not isinstance(likelihood, Mapping):
        return sample_data(likelihood, key)
    drawn = {}
    for (name, d), own in zip(likelihood.items(), jr.split(key, len(likelihood))):
        if like is not None:
            shape = jnp.shape(like[name])
            d = d.expand(shape[: len(shape) - len(d.event_shape)])
        drawn[name] = sample_data(d, own, f" {name!r}")
    return drawn


def sample_data(d: Any, key: PRNGKey, of: str = "") -> Array:
    """Return data drawn of a distribution; say which it is that cannot be sampled.

    Args:
        d: The distribution.
        key: A typed key.
        of: Name of the data for messages, after a space.

    Raises:
        ValueError: If it has no sampler, or one that makes another shape.
    """
    sampler = f"`sample` of the distribution of the data{of}, {type(d).__name__},"
    try:
        value = d.sample(key)
    except NotImplementedError as error:
        why = f"{sampler} is not there: write it, or `predict` in the model."
        raise ValueError(why) from error
    if jnp.shape(value) != tuple(d.shape()):
        raise ValueError(
            f"{sampler} must draw shape {tuple(d.shape())}; got {jnp.shape(value)}."
        )
    return value
