"""A maximum of a density, found inside of a compiled program."""

import jax
from jaxtyping import Array, Float

from ...core._target import AbstractTarget
from ...core._types import PRNGKey
from ..point import MAP

SEARCH = MAP(starts=1, steps=500, objective="unconstrained")


def find_mode(target: AbstractTarget, *, key: PRNGKey) -> Float[Array, " dim"]:
    """Return a maximum of the log density on unconstrained space, or how far a search came.

    Args:
        target: The target density.
        key: For where to start.
    """
    unfinished = lambda state: ~SEARCH.done(state) & (state.count < SEARCH.steps)
    step = lambda state: SEARCH.step(target, state, state.count, key=key)[0]
    return jax.lax.while_loop(unfinished, step, SEARCH.init(target, key=key)).point
