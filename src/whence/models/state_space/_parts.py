"""The methods of a state-space model, called and checked in one place."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from ...core._dtype import relaxed
from .._seen import log_prob_of_seen


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
            term = log_prob_of_seen(part, data[name], mask[name])
            terms.append(term.astype(jnp.result_type(float)).ravel())
    return jnp.concatenate(terms)


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
