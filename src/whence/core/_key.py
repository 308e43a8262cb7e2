"""Keys of random numbers: a typed key, or a whole number that seeds one."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import jax
import jax.random as jr
import numpy as np

from ._require import require_key
from ._types import PRNGKey

LARGEST = 2**32 - 1  # larger seeds would lose bits in float32, and two of them be the same


def as_key(key: Any) -> PRNGKey:
    """Return a typed key: the one given, or `jax.random.key` of a whole number.

    Raises:
        ValueError: If it is neither, or the number is not from 0 to 2**32 - 1.
    """
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not 0 <= key <= LARGEST:
            raise ValueError(f"`key` must be from 0 to {LARGEST} if a number; got {key}.")
        return jr.key(int(key))
    if not isinstance(key, jax.Array):
        raise ValueError(
            "`key` must be a typed key, as `jax.random.key(0)` makes, or a whole number; got "
            f"{key!r}."
        )
    require_key(key)
    return cast(PRNGKey, key)


def seeded[F: Callable[..., Any]](function: F) -> F:
    """Return a function whose keyword argument `key` may also be a whole number."""
    optional = inspect.signature(function).parameters["key"].default is None

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        key = kwargs.get("key")
        if "key" in kwargs and not (isinstance(key, jax.Array) or (optional and key is None)):
            kwargs["key"] = as_key(key)
        return function(*args, **kwargs)

    return cast(F, call)
