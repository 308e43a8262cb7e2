"""The optimiser that fits a family unless another is given."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ...core._dtype import relaxed
from ._batch import Batch
from ._family import AbstractFamily
from ._local import Local, has_kind, join_tables, split_tables

# Memories of Adam for the size of gradients, as decay rates. On the way gradients fall by
# orders of magnitude (for a scale that is k times too large they are k**2 times what they are
# near the end), and the memory limits how fast: with 0.999 a scale can shrink by 0.05% per
# update, with 0.9 by 5%. With 0.99, four of six fits in odd units (1e-6; 1e-3 to 1e6
# together) failed. Near the end a short memory is a bias, because it damps large gradients
# more than small ones and their law may be skewed: on two skewed coordinates, with 2 samples
# per update and 32 keys, scales were off by up to 2.9% with 0.9 and 0.9% with 0.99 (0.3%).
SEARCH_MEMORY, FALL_MEMORY = 0.9, 0.99
MEAN_MEMORY = 0.9  # of gradients themselves
NETWORKS = ("layers", "encoder")  # whose steps are smaller, as a network has many weights


def default_optimizer(learning_rate: float | int) -> Any:
    """Return an optax transform; its `update` takes `falling`, whether steps are falling.

    Steps have one size in all coordinates (Adam), except for the location in units of the
    position: that step finds its own size, as it grows while gradients agree in sign and
    shrinks when they do not (Rprop).

    References:
        Kingma, Ba (2015), "Adam: a method for stochastic optimization", ICLR. Riedmiller,
        Braun (1993), doi:10.1109/ICNN.1993.298623.
    """
    # Imported here for the sake of the time that `import whence` takes.
    import optax

    # The limits only keep float32 finite: from one to the other takes 500 updates.
    reach = optax.rprop(learning_rate, min_step_size=1e-20, max_step_size=1e20)
    parts = optax.partition({"adam": _adam(learning_rate), "reach": reach}, _labels)
    return optax.chain(parts, optax.stateless(lambda steps, _: _named(steps, _shrunk)))


def _adam(rate: float) -> Any:
    """Adam with both memories; `falling` says which the steps are taken by.

    Its moments are one array for all parameters: each operation has a cost of its own.
    """
    import optax

    def init(params):
        flat, _ = ravel_pytree(params)
        return jnp.zeros((), jnp.int32), jnp.zeros((3, flat.size), flat.dtype)

    def update(updates, state, params=None, *, falling=False):
        del params
        count, moments = state[0] + 1, state[1]
        flat, unravel = ravel_pytree(updates)
        memory = jnp.asarray([MEAN_MEMORY, SEARCH_MEMORY], flat.dtype)[:, None]
        kept = memory * moments[:2] + (1 - memory) * jnp.stack([flat, flat**2])
        mean, search = kept / (1 - memory ** count.astype(flat.dtype))
        # The long memory begins with the fall: it must not know what was on the way.
        fall = FALL_MEMORY * moments[2] + (1 - FALL_MEMORY) * flat**2
        fall = jnp.where(jnp.logical_and(falling, count > 1), fall, search)
        moments = jnp.concatenate([kept, fall[None]])
        return unravel(-rate * mean / (jnp.sqrt(fall) + 1e-8)), (count, moments)

    return optax.GradientTransformationExtraArgs(init, update)


def _labels(step: PyTree) -> PyTree:
    """Whose step is whose: of a location that can also move in units of its own scale."""
    is_reach = lambda name, both: both and name in ("loc", "location")
    return _named(step, lambda _, *of: "reach" if is_reach(*of) else "adam")


def _shrunk(steps: Array, name: str, both: bool) -> Array:
    if name in NETWORKS:
        return 0.1 * steps
    # The noise of a row's entries adds up.
    return steps / steps.shape[-1] ** 0.5 if name == "lower" else steps


def _named(step: PyTree, function: Callable, name: str = "", both: bool = False) -> PyTree:
    """Map arrays, given their names and whether the location there has both coordinates."""
    is_part = name not in NETWORKS
    if is_part and isinstance(step, dict):
        both = "whitened" in step
        return {k: _named(v, function, k, both) for k, v in step.items()}
    if is_part and isinstance(step, tuple):
        return tuple(_named(x, function, name, both) for x in step)
    return jax.tree.map(lambda x: function(x, name, both), step)


# The state of an optimiser is that of all steps but those of tables, and one by row for these:
# a row's state changes with its own steps only.


def start_optimizer(optimizer: Any, family: AbstractFamily, params: PyTree) -> PyTree:
    """Return the state before the first update.

    Args:
        optimizer: An optax transform.
        family: The family.
        params: Its parameters.
    """
    rest, tables = split_tables(family, family.no_step(params))
    with relaxed():
        by_row = jax.vmap(optimizer.init)(tables) if has_kind(family, Local) else None
        return optimizer.init(rest), by_row


def optimizer_steps(
    update: Callable, batch: Batch, state: PyTree, descent: PyTree
) -> tuple[PyTree, PyTree]:
    """Return the steps of an update, and the new state, of tables that of the batch's rows.

    Args:
        update: Takes what is descended along and a state, and returns steps and a new state.
        batch: The batch.
        state: Of the optimiser.
        descent: Minus the gradient.
    """
    rest, tables = split_tables(batch.family, descent)
    with relaxed():
        rest, new = update(rest, state[0])
        if state[1] is None:
            return rest, (new, None)
        own = jax.tree.map(lambda x: x[batch.rows], state[1])
        tables, rows = jax.vmap(update)(tables, own)
    return join_tables(batch.family, rest, tables), (new, rows)


def updated(rows: Array | None, old: PyTree, new: PyTree, either: Callable) -> PyTree:
    """Return the state after an update, that of a batch's rows put in its place.

    Args:
        rows: Their numbers.
        old: The state before.
        new: From `optimizer_steps`; None if there was no update of an optimiser.
        either: Chooses between new and old.
    """
    if new is None:
        return old
    rest = either(new[0], old[0])
    if old[1] is None:
        return rest, None
    kept = either(new[1], jax.tree.map(lambda x: x[rows], old[1]))
    return rest, jax.tree.map(lambda x, n: x.at[rows].set(n), old[1], kept)
