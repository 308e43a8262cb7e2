"""Tasks to learn from: arrays of them, or a function that makes a new batch from a key."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool

from ...core._convert import whole
from ...core._types import PRNGKey


class Batch(NamedTuple):
    """Tasks of one shape.

    Attributes:
        x: Inputs, `(task, point, ...)`.
        y: Data, `(task, point, ...)`.
        mask: Which points are there, `(task, point)`.
    """

    x: Array
    y: Array
    mask: Array


class AbstractTasks(eqx.Module):
    """Where batches of tasks come from."""

    @abc.abstractmethod
    def batch(self, size: int, *, key: PRNGKey) -> Batch:
        """Return a batch of tasks; traced.

        Args:
            size: How many, where there is a choice.
            key: Random key.
        """

    @abc.abstractmethod
    def example(self) -> Batch:
        """Return some tasks with their values, to be checked before anything is compiled."""


class Tasks(AbstractTasks):
    """A data set of tasks, of which each batch takes some at random without repetition.

    Args:
        x: Inputs, `(task, point, ...)`.
        y: Data, `(task, point)` or `(task, point, output)`.
        mask: Which points are there, `(task, point)`; None for all.

    Raises:
        ValueError: If shapes do not fit, tasks are ragged, one has no point, or a number
            that counts is not finite.
    """

    x: Array
    y: Array
    mask: Bool[Array, "task point"]

    def __init__(self, x: Any, y: Any, mask: Any = None):
        x, y, mask = check_tasks(x, y, mask)
        self.x, self.y, self.mask = jnp.asarray(x), jnp.asarray(y), jnp.asarray(mask)

    @staticmethod
    def ragged(x: Sequence[Any], y: Sequence[Any]) -> Tasks:
        """Return tasks of different sizes, filled up with zeros that a mask hides.

        Args:
            x: Inputs of each task, `(point, ...)`.
            y: Data of each task, `(point, ...)`.

        Raises:
            ValueError: If a task has not as many data as inputs, or none.
        """
        for i, (a, b) in enumerate(zip(x, y, strict=True)):
            if len(a) != len(b):
                raise ValueError(
                    f"`y` must have a row for each row of `x`; in task {i} there are {len(b)} "
                    f"and {len(a)}."
                )
        longest = max((len(a) for a in x), default=0)

        def fill(rows):
            rows = [np.asarray(r) for r in rows]
            none = [((0, longest - len(r)), *[(0, 0)] * (r.ndim - 1)) for r in rows]
            return np.stack([np.pad(r, pad) for r, pad in zip(rows, none)])

        mask = np.arange(longest)[None] < np.array([len(a) for a in x])[:, None]
        return Tasks(fill(x), fill(y), mask)

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.x)

    def batch(self, size, *, key):
        chosen = jr.choice(key, len(self.x), (size,), replace=False)
        return Batch(self.x[chosen], self.y[chosen], self.mask[chosen])

    def example(self):
        return Batch(self.x, self.y, self.mask)


class Episodes(AbstractTasks):
    """Endless tasks: a pure function of a key, run inside the compiled step.

    Args:
        sample: From a key to `(x, y)` or `(x, y, mask)`, arrays as for `Tasks`; how many
            tasks it gives is the size of a batch.
    """

    sample: Callable[[Any], Any]

    def __init__(self, sample: Any):
        if not callable(sample):
            raise ValueError(f"`sample` must be a function of a key; got {sample!r}.")
        self.sample = sample

    def batch(self, size, *, key):
        made = self.sample(key)
        if not isinstance(made, tuple) or len(made) not in (2, 3):
            raise ValueError("`sample` must return (x, y) or (x, y, mask).")
        return Batch(*map(jnp.asarray, check_tasks(*made)))

    def example(self):
        return self.batch(0, key=jr.key(0))


def check_tasks(x: Any, y: Any, mask: Any = None) -> tuple[Any, Any, Any]:
    """Return tasks as arrays with a mask.

    Raises:
        ValueError: If they are no tasks; values are looked at where they are known.
    """
    x, y = (_array(name, value) for name, value in (("x", x), ("y", y)))
    if x.ndim < 2 or y.ndim < 2 or x.shape[:2] != y.shape[:2] or 0 in x.shape[:2]:
        raise ValueError(
            "`x` and `y` must have shapes (task, point, ...) with the same tasks and points, "
            f"at least one; got {x.shape} and {y.shape}."
        )
    if mask is None:
        mask = np.ones(x.shape[:2], bool)
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if mask.shape != x.shape[:2] or mask.dtype != bool:
        raise ValueError(
            f"`mask` must be of booleans, of shape {x.shape[:2]}; got {mask.dtype} of shape "
            f"{mask.shape}."
        )
    if any(isinstance(value, Tracer) for value in (x, y, mask)):
        return x, y, mask
    there = np.asarray(mask)
    if not there.any(axis=1).all():
        empty = int(np.argmin(there.any(axis=1)))
        raise ValueError(f"Every task must have a point; task {empty} has none.")
    for name, value in (("x", x), ("y", y)):
        bad = ~np.isfinite(np.asarray(value)).reshape(*there.shape, -1).all(-1) & there
        if bad.any():
            task, point = np.argwhere(bad)[0]
            raise ValueError(
                f"`{name}` must be finite; point {point} of task {task} is not. Hide what is "
                "missing by `mask`."
            )
        if not np.isfinite(np.asarray(value)).all():
            raise ValueError(f"`{name}` must be finite where `mask` hides it, too; put zeros.")
    return x, y, mask


def _array(name: str, value: Any) -> Any:
    if isinstance(value, jax.Array | np.ndarray) and value.dtype != object:
        return value
    try:
        return np.asarray(value, dtype=None)
    except ValueError:
        raise ValueError(
            f"`{name}` has tasks of different sizes, which need a mask: "
            "`niw.Tasks.ragged(x, y)` makes one."
        ) from None


def subset(y: Array, mask: Array, size: Any, *, by_class: bool, key: PRNGKey) -> Array:
    """Return the mask of some points of a task at random.

    Args:
        y: Data of one task, points first.
        mask: Which points are there.
        size: How many points; of each class if `by_class`.
        by_class: Whether y are labels.
        key: Random key.
    """
    order = jnp.where(mask, jr.uniform(key, mask.shape), jnp.inf)
    before = order[None, :] < order[:, None]
    before = before & (y[None, :] == y[:, None]) if by_class else before
    return mask & (jnp.sum(before, axis=1) < size)


def batch_size(tasks: AbstractTasks, size: Any) -> int:
    """Return the size of batches that a setting asks for.

    Raises:
        ValueError: If there are fewer tasks.
    """
    size = whole("batch", least=1)(size)
    if isinstance(tasks, Tasks) and size > len(tasks):
        raise ValueError(
            f"`batch` must be at most the number of tasks, {len(tasks)}; got {size}."
        )
    return size
