"""Settings and arguments as plain Python values, each kind of rule said once.

`whole("draws", least=1)` returns a function that gives its argument back as an `int`, or
raises a `ValueError` that names `draws`, the rule and the value got. It is the `converter`
of a field of an Equinox module, or is called on the argument of a function.

A NumPy or JAX scalar is taken as the Python number it holds, so that configurations hash
and compare by value. Nothing else is converted but whole numbers to floats where a number
is asked for: `100.0` is no whole number, `True` no number, `1` no flag.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

Converter = Callable[[Any], Any]


def whole(
    name: str, *, least: int | None = None, most: int | None = None, optional: bool = False
) -> Converter:
    """Return a converter to a whole number.

    Args:
        name: Of the setting or argument.
        least: The smallest allowed.
        most: The largest allowed.
        optional: Whether None is allowed, too.
    """
    rule = _bounds({"at least": least, "at most": most})

    def convert(value: Any) -> int | None:
        value = _plain(value)
        if optional and value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            _refuse(name, "a whole number", value, optional)
        if (least is not None and value < least) or (most is not None and value > most):
            _refuse(name, rule, value, optional)
        return value

    return convert


def number(
    name: str,
    *,
    above: float | int | None = None,
    least: float | int | None = None,
    below: float | int | None = None,
    most: float | int | None = None,
    optional: bool = False,
) -> Converter:
    """Return a converter to a finite `float`.

    Args:
        name: Of the setting or argument.
        above: What it must be larger than.
        least: The smallest allowed.
        below: What it must be smaller than.
        most: The largest allowed.
        optional: Whether None is allowed, too.
    """
    is_open = below is None and most is None
    lower = (
        "positive" if above == 0 and is_open else _bounds({"above": above, "at least": least})
    )
    upper = "finite" if is_open else _bounds({"below": below, "at most": most})
    rule = f"{lower} and {upper}" if lower else upper

    def convert(value: Any) -> float | None:
        value = _plain(value)
        if optional and value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            _refuse(name, "a number", value, optional)
        if not (
            math.isfinite(value)
            and (above is None or value > above)
            and (least is None or value >= least)
            and (below is None or value < below)
            and (most is None or value <= most)
        ):
            _refuse(name, rule, value, optional)
        return float(value)

    return convert


def positive(name: str, *, optional: bool = False) -> Converter:
    """Return a converter to a positive, finite `float`."""
    return number(name, above=0, optional=optional)


def fraction(name: str) -> Converter:
    """Return a converter to a `float` between 0 and 1, both excluded."""
    return number(name, above=0, below=1)


def one_of(
    name: str,
    choices: Collection[str],
    shortcuts: Mapping[str, str] | None = None,
    *,
    kind: type | None = None,
) -> Converter:
    """Return a converter to one of some words.

    Args:
        name: Of the setting or argument.
        choices: The words.
        shortcuts: Other words for them.
        kind: A class whose instances are taken, too.
    """
    rule = f"one of {', '.join(map(repr, choices))}"
    rule += f", or an instance of {kind.__name__}" if kind else ""

    def convert(value: Any) -> Any:
        if kind and isinstance(value, kind):
            return value
        value = (shortcuts or {}).get(value, value) if isinstance(value, str) else value
        if not isinstance(value, str) or value not in choices:
            _refuse(name, rule, value)
        return value

    return convert


def flag(name: str, *, optional: bool = False) -> Converter:
    """Return a converter to True or False, or None if that is allowed, too."""

    def convert(value: Any) -> bool | None:
        value = _plain(value)
        if not isinstance(value, bool) and not (optional and value is None):
            _refuse(name, "True or False", value, optional)
        return value

    return convert


def part(name: str, kind: type) -> Converter:
    """Return a function that lets pass what is an instance of `kind`."""

    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            _refuse(name, f"an instance of {kind.__name__}", value)
        return value

    return convert


def _plain(value: Any) -> Any:
    """Return the number that a scalar array holds; all else, a traced one too, as it is."""
    if getattr(value, "shape", None) != ():
        return value
    try:
        return value.item()
    except (AttributeError, TypeError):
        return value


def _bounds(limits: Mapping[str, Any]) -> str:
    given = {words: limit for words, limit in limits.items() if limit is not None}
    return " and ".join(f"{words} {limit}" for words, limit in given.items())


def _refuse(name: str, rule: str, value: Any, optional: bool = False) -> None:
    rule = f"{rule}, or None" if optional else rule
    raise ValueError(f"`{name}` must be {rule}; got {value!r}.")
