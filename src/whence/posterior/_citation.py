"""What to cite for a run: the papers of its engine, its parts and its model, and libraries.

Papers are read from the section "References" of the docstrings of the classes that took
part. An entry may end with conditions on fields of its class, such as
`[metric: auto, fisher]`: then it counts only if the field has one of these values.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import equinox as eqx

LIBRARIES = {
    "whence": "The whence developers, software.",
    "jax": "Bradbury et al. (2018), JAX: composable transformations of Python+NumPy programs.",
    "equinox": "Kidger and Garcia (2021), arXiv:2111.00254.",
    "arviz": "Kumar, Carroll, Hartikainen and Martin (2019), doi:10.21105/joss.01143.",
}
_CHAINS = "Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), doi:10.1214/20-BA1221."
_RATIOS = (
    "Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, "
    "JMLR 25(72)."
)
DIAGNOSTICS = {
    "mcmc": f"R-hat and effective sample size: {_CHAINS}",
    "unadjusted": f"R-hat and effective sample size: {_CHAINS}",
    "variational": f"Pareto k: {_RATIOS}",
}
_CONDITION = re.compile(r"\s*\[(\w+): ([^\]]+)\]")


def references(*things: Any) -> list[str]:
    """Return the references of modules and of the modules in them, each once."""
    found: dict[str, str] = {}
    for module in _modules(things):
        for text, conditions in _documented(type(module)):
            if all(_value(module, field) in values for field, values in conditions):
                found.setdefault(text, f"{type(module).__name__}: {text}")
    return list(found.values())


def cite(entries: Sequence[str], versions: Mapping[str, str], method: str) -> str:
    """Return the text of `Posterior.citation`."""
    names = {name: f"{name} {versions.get(name, '')}".strip() for name in LIBRARIES}
    libraries = [f"{names[name]}: {text}" for name, text in LIBRARIES.items()]
    judged = [DIAGNOSTICS[method]] if method in DIAGNOSTICS else []
    return "\n".join([*libraries, *entries, *judged])


def _modules(value: Any) -> Iterator[eqx.Module]:
    if isinstance(value, eqx.Module):
        yield value
        for field in dataclasses.fields(value):
            yield from _modules(getattr(value, field.name, None))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _modules(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _modules(item)


def _value(module: eqx.Module, field: str) -> str:
    value = getattr(module, field, None)
    return value if isinstance(value, str) else type(value).__name__


@cache
def _documented(cls: type) -> tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]], ...]:
    """Return entries of docstrings of a class and its bases, each with its conditions."""
    found = []
    for base in cls.__mro__:
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, heading, section = text.partition("References:\n")
        # A section ends where another begins; an entry ends with the full stop of a line.
        lines = [line.strip() for line in re.split(r"\n(?=\S)", section)[0].splitlines()]
        entries = re.split(r"(?<=\.)\n", "\n".join(line for line in lines if line))
        found += [_entry(" ".join(entry.split())) for entry in entries if heading]
    return tuple(found)


def _entry(text: str):
    conditions = tuple(
        (field, tuple(value.strip() for value in values.split(",")))
        for field, values in _CONDITION.findall(text)
    )
    return _CONDITION.sub("", text), conditions
