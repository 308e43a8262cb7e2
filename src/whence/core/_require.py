"""What a target, an engine and a key must be; asked before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp

from ._engine import AbstractEngine
from ._flat import position_shapes
from ._target import AbstractTarget


def require_target(target: Any) -> None:
    """Raise unless `target` is a target."""
    if not isinstance(target, AbstractTarget):
        hint = (
            " (a model must first be conditioned on data: `whence.condition(model, y)`)"
            if hasattr(type(target), "__whence_model__")
            else ""
        )
        raise ValueError(f"`target` must be a whence target{hint}; got {type(target)}.")


def require_engine(engine: Any) -> None:
    """Raise `ValueError` unless this is an instance of an engine."""
    if isinstance(engine, type) and issubclass(engine, AbstractEngine):
        raise ValueError(
            f"`engine` must be an instance: write `{engine.__name__}()`, with parentheses."
        )
    if not isinstance(engine, AbstractEngine):
        raise ValueError(f"`engine` must be a whence engine, as `NUTS()`; got {engine!r}.")


def require_key(key: Any) -> None:
    """Raise `ValueError` unless this is a single typed key."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"`key` must be a typed key, as `jax.random.key(0)` makes; got {key!r}."
        )
    if key.shape != ():
        raise ValueError(f"`key` must be a single key; got shape {key.shape}.")


def check_positions(target: AbstractTarget, engine: str) -> None:
    """Raise unless positions of the target are floating-point numbers, and at least one."""
    leaves = jax.tree.leaves(position_shapes(target))
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{engine} needs positions of floating-point numbers; got {leaf.dtype}."
            )
    if sum(leaf.size for leaf in leaves) == 0:
        raise ValueError(f"{engine} needs at least one unconstrained dimension; got 0.")
