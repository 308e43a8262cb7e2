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

_BATCH = 25  # tasks of a step, where nobody says


class Batch(NamedTuple):
    """Tasks of one shape."""

    x: Array  # inputs, `(task, point, ...)`
    y: Array  # data, `(task, point, ...)`
    mask: Array  # which points are there, `(task, point)`


class AbstractTasks(eqx.Module):
    """Where batches of tasks come from."""

    @abc.abstractmethod
    def batch(self, size: int | None, *, key: PRNGKey) -> Batch:
        """Return a batch of tasks, of a size where there is a choice; traced."""

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
        """
        sizes = [(len(a), len(b)) for a, b in zip(x, y, strict=True)]
        if not sizes:
            raise ValueError("`x` must hold at least one task; got none.")
        for i, (rows, data) in enumerate(sizes):
            if rows != data:
                raise ValueError(
                    f"`y` must have a row for each row of `x`; in task {i} there are {data} "
                    f"and {rows}."
                )
        mask = np.arange(max(sizes)[0])[None] < np.array(sizes)[:, :1]

        def fill(parts):
            joined = np.concatenate([np.asarray(part) for part in parts])
            filled = np.zeros((*mask.shape, *joined.shape[1:]), joined.dtype)
            filled[mask] = joined
            return filled

        return Tasks(fill(x), fill(y), mask)

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.x)

    def batch(self, size, *, key):
        size = min(_BATCH, len(self)) if size is None else size
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
    mask = np.ones(x.shape[:2], bool) if mask is None else _array("mask", mask)
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
        bad = ~np.isfinite(np.asarray(value)).reshape(*there.shape, -1).all(-1)
        if (bad & there).any():
            task, point = np.argwhere(bad & there)[0]
            raise ValueError(
                f"`{name}` must be finite; point {point} of task {task} is not. Hide what is "
                "missing by `mask`."
            )
        if bad.any():
            raise ValueError(f"`{name}` must be finite where `mask` hides it, too; put zeros.")
    return x, y, mask


def _array(name: str, value: Any) -> Any:
    if isinstance(value, jax.Array):
        return value
    try:
        found = np.asarray(value)
    except ValueError:
        found = np.empty(0, object)
    if found.dtype == object:
        raise ValueError(
            f"`{name}` has tasks of different sizes, which need a mask: "
            "`niw.Tasks.ragged(x, y)` makes one."
        )
    return found


def subset(y: Array, mask: Array, size: Any, *, key: PRNGKey) -> Array:
    """Return the mask of so many random points of a task; of each class if y are labels."""
    order = jnp.where(mask, jr.uniform(key, mask.shape), jnp.inf)
    before = order[None, :] < order[:, None]
    if jnp.issubdtype(y.dtype, jnp.integer):
        before = before & (y[None, :] == y[:, None])
    return mask & (jnp.sum(before, axis=1) < size)


def some_points(batch: Batch, points: tuple[int, int], key: PRNGKey) -> Array:
    """Return a mask, `(task, point)`, of a random number of points of each task."""
    key_size, key_which = jr.split(key)
    number = len(batch.x)
    sizes = jr.randint(key_size, (number,), points[0], points[1] + 1)
    some = lambda y, mask, size, key: subset(y, mask, size, key=key)
    return jax.vmap(some)(batch.y, batch.mask, sizes, jr.split(key_which, number))


def check_numbers(tasks: AbstractTasks, batch: int | None, name: str, points: Any) -> None:
    """Raise `ValueError` if a batch, or a range of numbers of points, cannot be had."""
    if isinstance(tasks, Tasks) and batch is not None and batch > len(tasks):
        raise ValueError(
            f"`batch` must be at most the number of tasks, {len(tasks)}; got {batch}."
        )
    if points is None:
        return
    if not (isinstance(points, tuple | list) and len(points) == 2):
        raise ValueError(f"`{name}` must be two numbers, least and largest; got {points!r}.")
    low = whole(name, least=1)(points[0])
    whole(name, least=low)(points[1])
    most = int(np.max(np.sum(tasks.example().mask, axis=1)))
    if name == "support" and low >= most:
        raise ValueError(f"`support` must leave points to predict, of {most}; got {points}.")
