"""Studies: experiments of papers, at a size you choose; `whence study NAME` runs them.

A study is one module with a `STUDY`, named in `_MODULES`.
"""

import importlib

from ._study import (
    SIZES as SIZES,
    Request as Request,
    Study as Study,
    Table as Table,
    carry_out as carry_out,
)

_MODULES: dict[str, str] = {
    "varts": "_varts",
    "smnngp": "_smnngp",
    "niw": "_niw",
    "bae": "_bae",
    "fbm": "_fbm",
}


def names() -> tuple[str, ...]:
    """Return the names of all studies."""
    return tuple(_MODULES)


def study(name: str) -> Study:
    """Return a study."""
    if name not in _MODULES:
        raise ValueError(f"`name` must be one of {', '.join(_MODULES)}; got {name!r}.")
    return importlib.import_module(f".{_MODULES[name]}", __name__).STUDY
