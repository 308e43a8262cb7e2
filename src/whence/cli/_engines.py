"""Engines by name, their settings, and `--set name=value`."""

import ast
import dataclasses
import importlib.metadata
import inspect
import sys
import types
import typing
from functools import partial
from typing import Any

import equinox as eqx

from ..core import AbstractEngine
from ..core._json import from_json
from ._errors import USER_MODULE, UsageProblem, message
from ._load import is_engine, load_engine

GROUP = "whence.engines"  # entry points by which other packages add engines


def own_engines() -> dict[str, type[AbstractEngine]]:
    """Return the engines among whence's public names."""
    import whence

    values = {name: getattr(whence, name) for name in sorted(dir(whence))}
    return {name: value for name, value in values.items() if is_engine(value)}


def other_engines() -> dict[str, importlib.metadata.EntryPoint]:
    """Return the entry points of engines in other packages, not yet imported."""
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}


def find_engine(name: str) -> type[AbstractEngine] | AbstractEngine:
    """Return the engine of this name, in upper or lower case, or of this `FILE.py:NAME`."""
    if ".py" in name:
        return load_engine(name)
    known = {**other_engines(), **own_engines()}
    for candidate, value in known.items():
        if candidate.lower() == name.lower():
            return _load(value) if isinstance(value, importlib.metadata.EntryPoint) else value
    raise UsageProblem(
        f"There is no engine {name!r}; there are {', '.join(known)}, and those in files: "
        "FILE.py:NAME."
    )


def _load(entry: importlib.metadata.EntryPoint) -> type[AbstractEngine]:
    try:
        engine = entry.load()
    except Exception as error:
        raise UsageProblem(
            f"Engine {entry.name!r} ({entry.value}) cannot be imported: "
            f"{type(error).__name__}: {message(error)}"
        ) from error
    if not is_engine(engine):
        raise UsageProblem(f"Engine {entry.name!r} ({entry.value}) is not a whence engine.")
    return engine


def settings(engine: type[AbstractEngine]) -> dict[str, str]:
    """Return the settings of an engine and their defaults, as one would type them."""
    found = {}
    for field in dataclasses.fields(engine):
        if not field.init:
            continue
        if field.default is not dataclasses.MISSING:
            found[field.name] = repr(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = repr(field.default_factory())
        else:
            found[field.name] = "(required)"
    return found


def build_engine(
    engine: type[AbstractEngine] | AbstractEngine, pairs: list[str]
) -> AbstractEngine:
    """Return an engine with settings from the command line.

    Args:
        engine: The class, or one that is configured and of which settings are replaced.
        pairs: Each `name=value`; a value is a Python literal, a bare word (a string), or a
            call such as `FullRank()` of something that whence or the engine's package has.

    Raises:
        UsageProblem: If a name is unknown or given twice, or a value does not fit.
    """
    make = engine if isinstance(engine, type) else partial(dataclasses.replace, engine)
    engine = engine if isinstance(engine, type) else type(engine)
    known = settings(engine)
    hints, converts = _hints(engine)
    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if not equals:
            raise UsageProblem(f"--set takes NAME=VALUE, for example draws=2000; got {pair!r}.")
        if name not in known:
            raise UsageProblem(
                f"{engine.__name__} has no setting `{name}`; it has {', '.join(known)}."
            )
        if name in given:
            raise UsageProblem(f"--set gives `{name}` twice.")
        value = _whole(parse(text, engine), hints[name])
        if name not in converts and not fits(value, hints[name]):
            raise UsageProblem(
                f"`{name}` of {engine.__name__} must be {_spell(hints[name])}; got {text}."
            )
        given[name] = value
    try:
        return make(**given)
    except (ValueError, TypeError) as error:
        raise UsageProblem(f"{engine.__name__}: {message(error)}") from error


def stored_engine(configuration: dict[str, Any], name: str | None) -> AbstractEngine | None:
    """Return the engine of a stored run, with the settings that it had."""
    module, _, wanted = configuration["class"].partition(":")
    if name is None:
        if module.partition(".")[0] == "whence":
            return None
        raise UsageProblem(
            f"The run was made by {_readable(configuration['class'])}, which is not one of "
            "whence's own engines; name it: --engine FILE.py:NAME, or as `whence engines` does."
        )
    engine = find_engine(name)
    if isinstance(engine, AbstractEngine):
        return engine
    found = f"{engine.__module__}:{engine.__qualname__}"
    if found != configuration["class"]:
        raise UsageProblem(
            f"--engine must be the engine of the run, {_readable(configuration['class'])}; got "
            f"{_readable(found)}."
        )
    try:
        return from_json(configuration, packages=("whence", module.partition(".")[0]))
    except (ValueError, TypeError) as error:
        raise UsageProblem(
            f"The settings of {wanted} in the store do not fit: {message(error)}"
        ) from error


def _readable(path: str) -> str:
    module, _, name = path.partition(":")
    file = f"{module.removeprefix(USER_MODULE)}.py:{name}"
    return file if module.startswith(USER_MODULE) else f"{name} of {module}"


def _hints(engine: type[AbstractEngine]) -> tuple[dict[str, Any], set[str]]:
    """Return annotated types, and which fields convert (and check) what they are given."""
    converts = {f.name for f in dataclasses.fields(engine) if "converter" in f.metadata}
    try:
        return typing.get_type_hints(engine), converts
    except NameError:  # of a type that only checkers see
        return dict.fromkeys((f.name for f in dataclasses.fields(engine)), Any), converts


def parse(text: str, engine: type[AbstractEngine]) -> Any:
    """Return the value that a setting's text stands for."""
    text = text.strip()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if text.isidentifier():
        return text
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return _component(node.func.id, engine)(
                *(ast.literal_eval(argument) for argument in node.args),
                **{k.arg or "": ast.literal_eval(k.value) for k in node.keywords},
            )
    except (ValueError, TypeError, SyntaxError) as error:
        raise UsageProblem(f"The value {text!r} cannot be read: {message(error)}") from error
    raise UsageProblem(
        f"The value {text!r} must be a Python literal, a word, or a call such as `Name(1.0)`."
    )


def _component(name: str, engine: type[AbstractEngine]) -> type[eqx.Module]:
    """Return a part of an engine (a family, a preconditioner) by name; nothing else."""
    module = engine.__module__
    package = module.rpartition(".")[0] or module
    for place in ("whence", package, module):
        value = getattr(sys.modules[place], name, None)
        if isinstance(value, type) and issubclass(value, eqx.Module):
            return value
    raise ValueError(f"there is no part of an engine called `{name}`.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; types we cannot judge are let through."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float, bool):
        number = (int, float) if hint is float else hint
        return isinstance(value, number) and isinstance(value, bool) == (hint is bool)
    checked = (isinstance(hint, type) and origin is None) and hint.__module__ != "typing"
    return isinstance(value, hint) if checked else True


def _whole(value: Any, hint: Any) -> Any:
    """Return `1e4` as the integer it is, where an integer is wanted."""
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole and not fits(value, hint) else value


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def print_engines(width: int) -> None:
    """Print a table of engines, their settings and defaults."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Engines and their settings (--set NAME=VALUE)", show_lines=True)
    table.add_column("engine", style="bold")
    table.add_column("what it is")
    table.add_column("settings and defaults", overflow="fold")
    for name, value in {**other_engines(), **own_engines()}.items():
        try:
            engine = _load(value) if isinstance(value, importlib.metadata.EntryPoint) else value
        except UsageProblem as problem:
            table.add_row(name, str(problem), "")
            continue
        lines = (f"{n}={default}" for n, default in settings(engine).items())
        table.add_row(name, _first_line(engine), "\n".join(lines))
    # A pipe has no width: do not cut what someone will search.
    Console(width=max(width, 100), highlight=False, markup=False).print(table)


def _first_line(engine: type[AbstractEngine]) -> str:
    return (inspect.getdoc(engine) or "").partition("\n\n")[0].replace("\n", " ")
