"""Checks of what the statistics and scores are given."""

from typing import Any

import numpy as np


def numbers(name: str, value: Any) -> np.ndarray:
    """Return an array of real numbers, or raise `ValueError`."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"`{name}` must be real numbers; got dtype {array.dtype}.")
    return array


def draws_of(name: str, value: Any, rank: str = "(chain, draw, ...)") -> np.ndarray:
    """Return an array of real numbers `(chain, draw, ...)`, or raise `ValueError`."""
    array = numbers(name, value)
    if array.ndim < 2 or 0 in array.shape[:2] or (array.ndim > 2 and "..." not in rank):
        raise ValueError(
            f"`{name}` must have shape {rank}, with at least one chain and draw; got "
            f"{array.shape}."
        )
    return array


def predicted(y: Any, **predictions: Any) -> list[np.ndarray]:
    """Return observations and predictions, which may not be for more than these."""
    found = [numbers("y", y)]
    for name, value in predictions.items():
        value = numbers(name, value)
        try:
            shape = np.broadcast_shapes(found[0].shape, value.shape)
        except ValueError:
            shape = None
        if shape is None or (found[0].ndim and shape != found[0].shape):
            raise ValueError(
                f"`{name}` must broadcast to the shape of `y`, {found[0].shape}; got "
                f"{value.shape}."
            )
        found.append(value)
    return found


def require(name: str, value: Any, holds: Any, rule: str) -> None:
    """Raise `ValueError` unless a rule holds for every entry."""
    holds = np.asarray(holds)
    if not holds.all():
        wrong = np.broadcast_to(value, holds.shape)[~holds]
        raise ValueError(
            f"`{name}` must be {rule}; {wrong.size} of {holds.size} entries are not, "
            f"for example {wrong.flat[0]}."
        )


def require_probability(name: str, value: float) -> None:
    """Raise `ValueError` unless a number is between 0 and 1."""
    if not isinstance(value, int | float | np.number) or not 0 < value < 1:
        raise ValueError(f"`{name}` must be between 0 and 1; got {value}.")
