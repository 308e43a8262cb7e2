"""The optimiser that fits a family unless another is given."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...core._dtype import relaxed
from ._batch import Batch
from ._family import AbstractFamily
from ._local import has_tables, join_tables, split_tables

# Memories of Adam for the size of gradients, as decay rates. On the way gradients fall by
# orders of magnitude (for a scale that is k times too large they are k**2 times what they are
# near the end), and the memory limits how fast: with 0.999 a scale can shrink by 0.05% per
# update, with 0.9 by 5%. With 0.99, four of six fits in odd units (1e-6; 1e-3 to 1e6
# together) failed. Near the end a short memory is a bias, because it damps large gradients
# more than small ones and their law may be skewed: on two skewed coordinates, with 2 samples
# per update and 32 keys, scales were off by up to 2.9% with 0.9 and 0.9% with 0.99 (0.3%).
SEARCH_MEMORY, FALL_MEMORY = 0.9, 0.99
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

    adam = _switched(
        optax.adam(learning_rate, b2=SEARCH_MEMORY), optax.adam(learning_rate, b2=FALL_MEMORY)
    )
    network = _switched(
        optax.adam(learning_rate / 10, b2=SEARCH_MEMORY),
        optax.adam(learning_rate / 10, b2=FALL_MEMORY),
    )
    # The limits only keep float32 finite: from one to the other takes 500 updates.
    reach = optax.rprop(learning_rate, min_step_size=1e-20, max_step_size=1e20)
    return optax.partition({"adam": adam, "reach": reach, "network": network}, _labels)


def _switched(search, fall) -> Any:
    """Two transforms that both see all gradients; `falling` says whose step is taken."""
    import optax

    def init(params):
        return search.init(params), fall.init(params)

    def update(updates, state, params=None, *, falling=False):
        del params
        steps, states = zip(*(t.update(updates, s) for t, s in zip((search, fall), state)))
        return jax.tree.map(lambda a, b: jnp.where(falling, b, a), *steps), states

    return optax.GradientTransformationExtraArgs(init, update)


def _labels(step: PyTree) -> PyTree:
    """Whose step is whose: of a location that can also move in units of its own scale."""
    if isinstance(step, dict):
        both = "whitened" in step
        known = {"loc": "reach", "location": "reach"} if both else {}
        known |= dict.fromkeys(NETWORKS, "network")
        return {name: known.get(name) or _labels(value) for name, value in step.items()}
    if isinstance(step, tuple):
        return tuple(map(_labels, step))
    return None if step is None else "adam"


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
        by_row = jax.vmap(optimizer.init)(tables) if has_tables(family) else None
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
