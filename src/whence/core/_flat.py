"""Positions as flat vectors: most engines compute with those, whatever a position is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ._begin import first_position
from ._target import AbstractTarget
from ._types import Position, PRNGKey

FlatPosition = Float[Array, " dim"]


def position_shapes(target: AbstractTarget) -> Any:
    """Return shapes and types of a position, without drawing one.

    Args:
        target: The target.

    Returns:
        A pytree like a position, with a `jax.ShapeDtypeStruct` for each array.
    """
    return jax.eval_shape(lambda key: target.init(key=key), jr.key(0))


def flat_view(
    target: AbstractTarget,
) -> tuple[FlatPosition, Callable[[FlatPosition], Position]]:
    """Return a flat position of zeros, and the function that gives one its structure back.

    Args:
        target: The target.
    """
    return ravel_pytree(
        jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), position_shapes(target))
    )


def flat_init(
    target: AbstractTarget, *, key: PRNGKey, member: Int[Array, ""] | None = None
) -> FlatPosition:
    """Return where to begin, as a flat vector: a random position, unless the user chose one.

    Args:
        target: The target.
        key: For `target.init`.
        member: Number of the chain or particle, of an engine that couples several.
    """
    return ravel_pytree(first_position(target, key=key, member=member))[0]


def flat_draws(draws: Any, dtype: Any = None) -> np.ndarray:
    """Return draws as one array `(chain, draw, dim)`, in NumPy.

    Args:
        draws: A pytree whose leaves have leading axes `chain` and `draw`.
        dtype: Of the result; by default that of the leaves.
    """
    leaves = [np.asarray(leaf, dtype) for leaf in jax.tree.leaves(draws)]
    return np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)
