"""Steps of a procedure inside a program of one's own."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int, PyTree

from ._convert import whole
from ._engine import AbstractProcedure, Info
from ._key import seeded
from ._types import PRNGKey


@seeded
def advance(
    procedure: AbstractProcedure,
    target: PyTree,
    state: PyTree,
    index: int | Int[Array, ""],
    steps: int,
    *,
    key: PRNGKey,
) -> tuple[PyTree, Info]:
    """Go on from a state by some steps; traced, for use under `jit`, `vmap` and `scan`.

    Step `i` uses `fold_in(key, i)`, so several calls with one key make the steps that a
    single call would. `infer` and `train` do this with progress, stores and devices.

    Args:
        procedure: What to run; one that pauses must do without its pauses here.
        target: What it works on.
        state: After step `index - 1`: from `init` if `index` is 0.
        index: Number of the first step to make.
        steps: How many, at least 1.
        key: Of the whole run.

    Returns:
        The state after step `index + steps - 1`, and what that step recorded.

    Raises:
        ValueError: If `steps` is not positive.
    """
    steps = whole("steps", least=1)(steps)
    index = jnp.asarray(index, jnp.int32)

    def step(i, carry):
        state, _ = carry
        return procedure.step(target, state, i, key=jr.fold_in(key, i))

    shapes = jax.eval_shape(step, index, (state, None))[1]
    blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.fori_loop(index, index + steps, step, (state, blank))
