"""Where a run is to begin, if its user says so: known while the program of the run is traced.

Engines ask for a start where they search for one, most of them inside a loop, and a target
answers by `init`. A start that was chosen takes the place of this answer here, so that it is a
matter of neither: an engine asks `first_position` (or `flat_init`), and that is all. An engine
that never asks is found out before anything is compiled.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ._engine import Schedule
from ._target import AbstractTarget
from ._types import Position, PRNGKey


class Given:
    """The start of one replica.

    Attributes:
        positions: A position; with `many`, one for each of the chains or particles that the
            engine couples, along a leading axis.
        many: Whether the engine couples chains or particles.
        asked: Whether anything began there.
    """

    def __init__(self, positions: PyTree, many: bool):
        self.positions, self.many, self.asked = positions, many, False


_GIVEN: ContextVar[Given | None] = ContextVar("whence_start", default=None)


def members(schedule: Schedule) -> int:
    """Return how many starts a run has: of chains, or of what one replica couples."""
    ensemble = schedule.ensemble if schedule.replicas == 1 else None
    return schedule.replicas if ensemble is None else ensemble[1]


@contextmanager
def beginning(starts: PyTree, replica: Any, schedule: Schedule) -> Iterator[Given]:
    """Let what is traced inside begin where it was told to.

    Args:
        starts: Positions with a leading axis, as many as `members`; None for `target.init`.
        replica: Number of the replica that is traced.
        schedule: Of the engine.
    """
    many = schedule.replicas == 1 and schedule.ensemble is not None
    own = starts if many else jax.tree.map(lambda x: jnp.asarray(x)[replica], starts)
    given = Given(own, many)
    token = _GIVEN.set(None if starts is None else given)
    try:
        yield given
    finally:
        _GIVEN.reset(token)


def is_told() -> bool:
    """Return whether the user of the run that is traced said where it is to begin."""
    return _GIVEN.get() is not None


def first_position(
    target: AbstractTarget, *, key: PRNGKey, member: Int[Array, ""] | None = None
) -> Position:
    """Return where to begin: where the user said, or what `target.init` draws. Traced.

    Args:
        target: The target, or another one whose positions are the same or a part of them.
        key: For `target.init`.
        member: Number of the chain or particle, of an engine that couples several.
    """
    given, own = _GIVEN.get(), lambda: target.init(key=key)
    if given is None or given.many != (member is not None):
        return own()
    found = given.positions
    if given.many:
        found = jax.tree.map(lambda x: jnp.asarray(x)[member], found)
    like = jax.eval_shape(own)
    if isinstance(like, dict) and isinstance(found, dict):
        found = {name: found[name] for name in like if name in found}
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    if shapes(found) != shapes(like):
        return own()
    given.asked = True
    return found
