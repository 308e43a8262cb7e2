"""Options of another library: made hashable, checked, and handed to the right function."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def freeze(options: Any) -> tuple:
    """Return options as sorted pairs that can be hashed: arrays become nested tuples."""
    try:
        pairs = dict(options).items()
        frozen = tuple(sorted((name, _freeze_value(value)) for name, value in pairs))
        hash(frozen)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`options` must be a dict, or pairs, of names and values that can be hashed; got "
            f"{options!r}."
        ) from error
    return frozen


def _freeze_value(value: Any) -> Any:
    if isinstance(value, np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        return tuple(_freeze_value(v) for v in value)
    return value


def route(
    options: tuple, library: str, own: tuple[str, ...], *functions: Callable
) -> tuple[dict[str, Any], ...]:
    """Give each option to the functions of the library that take an argument of its name.

    Raises:
        ValueError: If no function takes an option of this name.
    """
    accepted = [set(inspect.signature(f).parameters) - {"self", *own} for f in functions]
    known = sorted(set().union(*accepted))
    for name, _ in options:
        if name not in known:
            raise ValueError(
                f'`options` with backend="{library}" has no option `{name}`; '
                f"the options are {', '.join(f'`{k}`' for k in known)}."
            )
    return tuple({k: v for k, v in options if k in names} for names in accepted)


def initial_metric(value: Any, dense: bool, dim: int) -> Array:
    """Return the option `initial_inverse_mass_matrix` as an array, its shape checked."""
    array = jnp.asarray(value, jnp.result_type(float))
    shape = (dim, dim) if dense else (dim,)
    if array.shape != shape:
        raise ValueError(
            f"The initial inverse mass matrix in `options` must have shape {shape} here; "
            f"got {array.shape}."
        )
    return array
