"""Names for the elements of arrays, for people: `theta[Choate]`, `beta[2, age]`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


class Namer:
    """Names elements of variables by the labels of their axes."""

    def __init__(
        self, dims: Mapping[str, Sequence[str]] | None, coords: Mapping[str, Any] | None
    ):
        self._dims = dims or {}
        self._coords = coords or {}

    def __call__(self, variable: str, shape: tuple[int, ...], flat_index: int) -> str:
        """Name one element of a variable."""
        if not shape:
            return variable
        index = np.unravel_index(flat_index, shape)
        # Trailing axes may be without a name.
        axes = (*self._dims.get(variable, ()), *[None] * len(shape))[: len(shape)]
        labels = (
            self._label(axis, int(i), length)
            for axis, i, length in zip(axes, index, shape, strict=True)
        )
        return f"{variable}[{', '.join(labels)}]"

    def _label(self, axis: str | None, index: int, length: int) -> str:
        labels = self._coords.get(axis) if axis is not None else None
        if labels is None or len(labels) != length:
            return str(index)
        return str(labels[index])


def listing(names: Iterable[str], most: int = 4) -> str:
    """Join names for a sentence: the first few, and how many more."""
    names = list(names)
    shown = ", ".join(names[:most])
    rest = len(names) - most
    return f"{shown} and {rest} more" if rest > 0 else shown


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Return `1 chain`, `2 chains`."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def by_reason(texts: Iterable[str]) -> list[str]:
    """Join texts `who: why` that have the same reason: `who, who and 2 more: why`."""
    found: dict[str, list[str]] = {}
    for text in texts:
        who, _, why = text.partition(": ")
        found.setdefault(why, []).append(who)
    return [": ".join(filter(None, (listing(who, 8), why))) for why, who in found.items()]


def beyond(value: float, limit: float) -> str:
    """Format a value by four digits, or as many as tell it from the limit that it is beyond."""
    texts = (f"{value:.{digits}g}" for digits in range(4, 18))
    return next((text for text in texts if float(text) != limit), f"{value:g}")
