"""`FILE.py:NAME` becomes a target or an engine."""

import inspect
import os
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from ..core import AbstractEngine, AbstractTarget
from ..language import Model
from ._errors import USER_MODULE, FileProblem, UsageProblem, message, say, user_line

_HOW = "a target is named FILE.py:NAME, for example `model.py:target`"
_HOW_ENGINE = "an engine is named FILE.py:NAME, for example `--engine walk.py:Walk`"


def load_target(spec: str) -> AbstractTarget:
    """Run a Python file and return the target of this name in it.

    Args:
        spec: `FILE.py:NAME`, where NAME is a target or a function without required
            arguments that returns one; `FILE.py` alone if it has exactly one target.

    Raises:
        UsageProblem: If `spec` is not of this form.
        FileNotFoundError: If there is no such file.
        FileProblem: If the file raises an error, or NAME is missing or no target.
    """
    path, name = _split(spec, _HOW)
    module = _run(path, _HOW)
    name = name or _only(_targets(module), path, "target", _HOW)
    value = _lookup(module, name, path, "targets", _targets(module))
    if callable(value) and not isinstance(value, type | AbstractTarget | Model):
        value = _call(value, name, path)
    if not isinstance(value, AbstractTarget):
        raise FileProblem(_no_target(value, name, path))
    return value


def load_engine(spec: str) -> type[AbstractEngine] | AbstractEngine:
    """Return a class of engines, or one that is configured, as `load_target` does a target."""
    path, name = _split(spec, _HOW_ENGINE)
    module = _run(path, _HOW_ENGINE)
    # Not those that the file imports.
    own = [
        n for n, v in vars(module).items() if is_engine(v) and v.__module__ == module.__name__
    ]
    name = name or _only(own, path, "engine", _HOW_ENGINE)
    value = _lookup(module, name, path, "engines", own)
    if isinstance(value, type) and issubclass(value, AbstractEngine) and not is_engine(value):
        missing = ", ".join(f"`{method}`" for method in sorted(value.__abstractmethods__))
        raise FileProblem(f"`{name}` in {path} is not a complete engine; it lacks {missing}.")
    if not is_engine(value) and not isinstance(value, AbstractEngine):
        kind = (
            f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        )
        raise FileProblem(
            f"`{name}` in {path} must be an engine, a subclass of `whence.AbstractEngine` or "
            f"an instance of one; got {kind}."
        )
    return value


def is_engine(value: Any) -> bool:
    """Whether a value is a class of engines that can be built."""
    is_class = isinstance(value, type) and issubclass(value, AbstractEngine)
    return is_class and not inspect.isabstract(value)


def absolute_spec(spec: str) -> str:
    """Return `spec` with its file's absolute path: valid from any folder."""
    path, name = _split(spec, _HOW)
    path = path.expanduser().resolve()
    return f"{path}:{name}" if name else str(path)


def trusted(spec: str | None, store: Path, trust: bool) -> str:
    """Return the target that a store names, if its file may be run without being typed.

    Args:
        spec: What the store says.
        store: The folder.
        trust: Whether the user said that any file may be run.

    Raises:
        UsageProblem: If the store names none, or one that whoever made the store may have
            put there: then it must be named by the user.
    """
    if not spec:
        raise UsageProblem(
            f"{store} does not say where its target comes from; give it: FILE.py:NAME."
        )
    doubt = _doubt(_split(spec, _HOW)[0], store)
    if doubt and not trust:
        raise UsageProblem(
            f"{store} names {spec} as its target, {doubt}; running it could do anything. Read "
            "that file, then name it yourself (STORE FILE.py:NAME; for a report --target "
            "FILE.py:NAME), or add --trust."
        )
    say(f"{spec}, as the store {store} says", lead="running")
    return spec


def _doubt(path: Path, store: Path) -> str:
    """Return why a file that a store names may not be the user's own, or nothing."""
    if not path.is_absolute():
        return "which is no full path"
    inside = (path.parent.resolve() / path.name, path.resolve())
    if any(p.is_relative_to(store.resolve()) for p in inside):
        return "which lies in the store itself"
    for file, word in ((path, "which is"), (store / "manifest.json", "in words that are")):
        if hasattr(os, "geteuid") and file.exists() and file.stat().st_uid != os.geteuid():
            return f"{word} another user's"
    return ""


def _split(spec: str, how: str) -> tuple[Path, str]:
    file, colon, name = spec.rpartition(":")
    if not colon or name.endswith(".py"):  # the second is a drive letter: C:\model.py
        file, name = spec, ""
    if not file.endswith(".py") or (name and not name.isidentifier()):
        raise UsageProblem(f"{spec!r} cannot be read: {how}.")
    return Path(file), name


def _run(path: Path, how: str) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}; {how}.")
    return _executed(path, path.resolve(), path.stat().st_mtime_ns)


@cache
def _executed(path: Path, real: Path, changed: int) -> ModuleType:
    """Run a file, once for target and engine: their classes must be the same."""
    name = USER_MODULE + path.stem
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileProblem(f"{path} cannot be imported as a Python file.")
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    # As `python FILE.py` does, so that it can import its neighbours.
    sys.path.insert(0, str(real.parent))
    # Folders of models are the user's own: no bytecode is left in them.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"{error.filename or path}, line {error.lineno}"
        raise FileProblem(f"{where}: {type(error).__name__}: {error.msg}.") from error
    except (Exception, SystemExit) as error:
        raise _problem(error, path) from error
    finally:
        sys.dont_write_bytecode = writes
    return module


def _call(function: Any, name: str, path: Path) -> Any:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise FileProblem(
            f"`{name}` in {path} must be callable without arguments to make a target: {error}."
        ) from error
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise _problem(error, path) from error


def _problem(error: BaseException, path: Path) -> FileProblem:
    where = user_line(error.__traceback__) or str(path)
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return FileProblem(f"{where}: {kind}{message(error)}")


def _targets(module: ModuleType) -> list[str]:
    return [n for n, v in vars(module).items() if isinstance(v, AbstractTarget)]


def _only(found: list[str], path: Path, kind: str, how: str) -> str:
    if len(found) != 1:
        there = f"it has {', '.join(found)}" if found else "it has none"
        raise UsageProblem(f"Say which {kind} of {path} to use ({there}): {how}.")
    return found[0]


def _lookup(module: ModuleType, name: str, path: Path, kind: str, found: list[str]) -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    names = ", ".join(f"`{one}`" for one in found) or "none"
    raise FileProblem(f"{path} has no `{name}`; the {kind} in it: {names}.")


def _no_target(value: Any, name: str, path: Path) -> str:
    is_model = isinstance(value, Model)
    if is_model or (isinstance(value, type) and issubclass(value, Model)):
        model = name if is_model else f"{name}()"
        return (
            f"`{name}` in {path} is a model without data. Condition it, for example "
            f"`target = whence.condition({model}, y)`, and name that."
        )
    return (
        f"`{name}` in {path} must be a target (as `whence.condition(model, y)` makes) or a "
        f"function that returns one; got {type(value).__name__}."
    )
