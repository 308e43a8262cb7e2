"""Configurations and records as JSON and back, with their arrays beside them."""

import dataclasses
import functools
import importlib
import sys
from typing import Any

import equinox as eqx
import jax
import numpy as np


def to_json(value: Any, arrays: dict[str, np.ndarray] | None = None) -> Any:
    """Return a configuration or a record as JSON values.

    What JSON cannot hold, such as an optimiser, is told by its name: `from_json` refuses it.

    Args:
        value: Numbers, text, None, and tuples, dicts and modules of such.
        arrays: Where arrays are put, by a name made for each; None to refuse them.

    Raises:
        ValueError: If there are arrays and no place for them.
    """
    inside = lambda item: to_json(item, arrays)
    if isinstance(value, eqx.Module):
        cls = type(value)
        fields = {f.name: inside(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": f"{cls.__module__}:{cls.__qualname__}", "fields": fields}
    if isinstance(value, dict):
        return {"dict": [[str(name), inside(item)] for name, item in value.items()]}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return {"tuple": [inside(item) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if arrays is None:
            raise ValueError(f"An engine that is stored must not hold arrays; got {value!r}.")
        name = f"x{len(arrays)}"
        arrays[name] = np.asarray(value)
        return {"array": name}
    return {"opaque": _name_of(value)}


def _name_of(value: Any, depth: int = 6) -> str:
    """Return what tells two such values apart without their addresses in memory.

    Of functions that is their name and what they close over: two optimisers of optax differ
    in nothing else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, tuple) and depth:
        inside = ", ".join(_name_of(item, depth - 1) for item in value)
        return f"{type(value).__qualname__}({inside})"
    own: Any = value if hasattr(value, "__qualname__") else type(value)
    cells = (getattr(value, "__closure__", None) or ()) if depth else ()
    closed = ", ".join(_name_of(cell.cell_contents, depth - 1) for cell in cells)
    return f"{own.__module__}:{own.__qualname__}" + (f"[{closed}]" if closed else "")


def from_json(
    value: Any,
    arrays: dict[str, np.ndarray] | None = None,
    packages: tuple[str, ...] = ("whence",),
) -> Any:
    """Return what `to_json` wrote.

    Only classes of whence itself are looked up, unless told: a file is data, not code.

    Args:
        value: JSON values.
        arrays: Arrays by name.
        packages: Packages whose classes may be looked up.

    Raises:
        ValueError: If a class is of another package, a part could not be written, or the
            values are not those that `to_json` writes.
    """
    try:
        return _from_json(value, arrays or {}, packages)
    except (KeyError, TypeError, AttributeError, ImportError, RecursionError) as error:
        raise ValueError(f"it is not as whence writes it ({error!r:.200})") from error


def _from_json(value: Any, arrays: dict[str, np.ndarray], packages: tuple[str, ...]) -> Any:
    inside = lambda item: _from_json(item, arrays, packages)
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(inside(item) for item in value["tuple"])
    if "dict" in value:
        return {name: inside(item) for name, item in value["dict"]}
    if "array" in value:
        return arrays[value["array"]]
    if "opaque" in value:
        raise ValueError(f"a part of it, {value['opaque']}, cannot be stored")
    module, _, name = value["class"].partition(":")
    if module.split(".")[0] not in packages:
        raise ValueError(f"{name} of {module} is not one of whence's own classes")
    # Of other packages nothing is imported: that would run what the file names.
    own = module.startswith("whence.")
    found = importlib.import_module(module) if own else sys.modules[module]
    cls: Any = functools.reduce(getattr, name.split("."), found)
    if not issubclass(cls, eqx.Module):
        raise ValueError(f"{value['class']} is no engine, record or part of one")
    settable = {f.name for f in dataclasses.fields(cls) if f.init}
    return cls(**{n: inside(v) for n, v in value["fields"].items() if n in settable})
