"""The methods of a state-space model, called and checked in one place."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from ...core._dtype import relaxed
from ..linear_gaussian._kalman import LOG_2PI

# Of which a part that is missing can be left out.
NORMALS = dist.MultivariateNormal | dist.LowRankMultivariateNormal


def takes_inputs(model: Any, name: str, plain: int) -> bool:
    """Whether a method takes more than `plain` arguments: the inputs of its time."""
    return len(inspect.signature(getattr(model, name)).parameters) > plain


def law(model: Any, name: str, *arguments: Any) -> Any:
    """Return what `initial`, `transition` or `emission` of a user's model gives.

    Raises:
        ValueError: If it is no distribution, naming the method.
    """
    if name != "initial" and not takes_inputs(model, name, len(arguments) - 1):
        arguments = arguments[:-1]
    with relaxed():
        found = getattr(model, name)(*arguments)
    several = isinstance(found, Mapping) and name == "emission"
    parts = list(found.values()) if several else [found]
    for part in parts:
        if not isinstance(part, dist.Distribution):
            raise ValueError(
                f"`{name}` of {type(model).__name__} must return a numpyro distribution"
                f"{', or a dict of them' if name == 'emission' else ''}; got {part!r}."
            )
    return dict(found) if several else found


def log_prob(found: Any, value: Any) -> Array:
    """Return the log density of one state, in nats."""
    with relaxed():
        return jnp.sum(found.log_prob(value)).astype(jnp.result_type(float))


def emission_terms(model: Any, x: Any, t: Any, y: Any, inputs: Any, seen: Any) -> Array:
    """Return the log density of the data of one time given the state, in nats.

    Args:
        model: With values.
        x: The state.
        t: The time.
        y: Data of that time: an array, or a dict of them.
        inputs: Of that time.
        seen: Which numbers count, of the form of `y`; None if all do.

    Returns:
        One number for each that is independent of others, flat; zero where nothing counts.
    """
    found = law(model, "emission", x, t, inputs)
    found = found if isinstance(found, dict) else {"y": found}
    data = y if isinstance(y, Mapping) else {"y": y}
    mask = seen if isinstance(seen, Mapping) else {name: seen for name in found}
    terms = []
    with relaxed():
        for name, part in found.items():
            known = mask[name]
            inner = part if known is None else plain(part)
            if isinstance(inner, NORMALS) and known is not None:
                term = jnp.asarray(_normal_of_seen(inner, data[name], known))
            else:
                term = jnp.asarray(inner.log_prob(data[name]))
                if known is not None:
                    events = len(inner.event_shape)
                    axes = tuple(range(known.ndim - events, known.ndim))
                    # A part of another vector cannot be left out, and is an error.
                    term = jnp.where(jnp.all(known, axis=axes), term, jnp.nan)
                    term = jnp.where(jnp.any(known, axis=axes), term, 0.0)
            terms.append(term.astype(jnp.result_type(float)).ravel())
    return jnp.concatenate(terms)


def plain(found: Any) -> Any:
    """Return a distribution with as many numbers as can be, each of its own."""
    while isinstance(found, dist.Independent):
        found = found.base_dist
    return found


def _normal_of_seen(found: Any, y: Array, seen: Array) -> Array:
    """Return the log density of those numbers of each vector that were observed."""
    # The others become standard normal and independent, at zero: their density is known.
    both = seen[..., :, None] & seen[..., None, :]
    eye = jnp.eye(y.shape[-1], dtype=found.covariance_matrix.dtype)
    covariance = jnp.where(both, found.covariance_matrix, eye)
    rest = jnp.where(seen, y - found.loc, jnp.zeros_like(found.loc))
    whole = dist.MultivariateNormal(jnp.zeros_like(rest), covariance).log_prob(rest)
    return whole + jnp.sum(~seen, axis=-1) * LOG_2PI / 2  # pyright: ignore


def simulate(model: Any, length: int, inputs: Any, *, key: Any) -> Any:
    """Return a path of states that knows no data, `(time, ...)`."""
    key_first, key_rest = jax.random.split(key)
    with relaxed():
        first = jnp.asarray(law(model, "initial").sample(key_first))
    later = jax.tree.map(lambda v: v[1:], (jnp.arange(length, dtype=jnp.int32), inputs))
    return jnp.concatenate([first[None], go_on(model, first, *later, key=key_rest)])


def go_on(model: Any, x: Any, times: Array, inputs: Any, *, key: Any) -> Any:
    """Return states at `times`, given the state at the time before; `(time, ...)`."""

    def step(x, at):
        t, inputs, key = at
        with relaxed():
            x = jnp.asarray(law(model, "transition", x, t, inputs).sample(key), x.dtype)
        return x, x

    return jax.lax.scan(step, x, (times, inputs, jax.random.split(key, len(times))))[1]


def emit(model: Any, path: Any, times: Array, inputs: Any, *, key: Any) -> Any:
    """Return data drawn given a path of states, an array or a dict of arrays by time."""

    def one(x, t, inputs, key):
        found = law(model, "emission", x, t, inputs)
        with relaxed():
            if not isinstance(found, dict):
                return found.sample(key)
            keys = jax.random.split(key, len(found))
            return {n: part.sample(k) for (n, part), k in zip(found.items(), keys)}

    return jax.vmap(one)(path, times, inputs, jax.random.split(key, len(times)))
