"""Densities of data of one time that are missing in part."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array

from ..core._dtype import relaxed

# Of which a part that is missing can be left out.
_NORMALS = dist.MultivariateNormal | dist.LowRankMultivariateNormal


def plain(found: Any) -> Any:
    """Return a distribution with as many numbers as can be, each of its own."""
    while isinstance(found, dist.Independent):
        found = found.base_dist
    return found


def log_prob_of_seen(found: Any, y: Array, seen: Array | None) -> Array:
    """Return the log density of what was observed, in nats.

    Args:
        found: Law of the data.
        y: The data, with any number in place of what is missing.
        seen: Which numbers were observed; None if all were.

    Returns:
        One number for each that is independent of others, zero where nothing was observed. NaN
        where a vector is missing in part of which no part can be left out.
    """
    with relaxed():
        if seen is None:
            return jnp.asarray(found.log_prob(y))
        found = plain(found)
        if isinstance(found, _NORMALS):
            return _normal_of_seen(found, y, seen)
        term = jnp.asarray(found.log_prob(y))
        axes = tuple(range(term.ndim, seen.ndim))
        term = jnp.where(jnp.all(seen, axis=axes), term, jnp.nan)
        return jnp.where(jnp.any(seen, axis=axes), term, 0.0)


def _normal_of_seen(found: Any, y: Array, seen: Array) -> Array:
    # Numbers that are missing become standard normal and independent, at zero: their density
    # is known.
    both = seen[..., :, None] & seen[..., None, :]
    eye = jnp.eye(y.shape[-1], dtype=found.covariance_matrix.dtype)
    covariance = jnp.where(both, found.covariance_matrix, eye)
    rest = jnp.where(seen, y - found.loc, jnp.zeros_like(found.loc))
    whole: Any = dist.MultivariateNormal(jnp.zeros_like(rest), covariance).log_prob(rest)
    return whole + jnp.sum(~seen, axis=-1) * np.log(2 * np.pi) / 2


def require_whole_events(method: str, name: str, found: Any, observed: Any) -> None:
    """Refuse data that are missing in part where they cannot be left out.

    Args:
        method: That gives the law, and of which class.
        name: Of the data.
        found: Law of the data of one time.
        observed: Which numbers were observed at all times; None if all were.

    Raises:
        ValueError: Naming the law.
    """
    found = plain(found)
    events = len(found.event_shape)
    if observed is None or isinstance(observed, Tracer) or not events:
        return
    axes = tuple(range(-events, 0))
    seen = np.asarray(observed)
    partly = seen.any(axis=axes) & ~seen.all(axis=axes)
    if partly.any() and not isinstance(found, _NORMALS):
        raise ValueError(
            f"`{name}` must be missing as a whole at a time, or not at all, where {method} is "
            f"a {type(found).__name__}, of which no part can be left out; got vectors missing "
            f"in part, {partly.sum()} of them."
        )
