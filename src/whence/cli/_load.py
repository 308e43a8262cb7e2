"""`FILE.py:NAME` becomes a target."""

import inspect
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from ..core import AbstractTarget
from ..language import Model
from ._errors import USER_MODULE, FileProblem, UsageProblem, message, user_line

_HOW = "a target is named FILE.py:NAME, for example `model.py:target`"


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
    path, name = _split(spec)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}; {_HOW}.")
    module = _run(path)
    if not name:
        name = _only_target(module, path)
    value = _lookup(module, name, path)
    if callable(value) and not isinstance(value, type | AbstractTarget | Model):
        value = _call(value, name, path)
    if not isinstance(value, AbstractTarget):
        raise FileProblem(_no_target(value, name, path))
    return value


def absolute_spec(spec: str) -> str:
    """Return `spec` with its file's absolute path: valid from any folder."""
    path, name = _split(spec)
    return f"{path.resolve()}:{name}" if name else str(path.resolve())


def _split(spec: str) -> tuple[Path, str]:
    file, colon, name = spec.rpartition(":")
    if not colon or name.endswith(".py"):  # the second is a drive letter: C:\model.py
        file, name = spec, ""
    if not file.endswith(".py") or (name and not name.isidentifier()):
        raise UsageProblem(f"{spec!r} does not name a target: {_HOW}.")
    return Path(file), name


def _run(path: Path) -> ModuleType:
    name = USER_MODULE + path.stem
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileProblem(f"{path} cannot be imported as a Python file.")
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    # As `python FILE.py` does, so that it can import its neighbours.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"{error.filename or path}, line {error.lineno}"
        raise FileProblem(f"{where}: {type(error).__name__}: {error.msg}.") from error
    except Exception as error:
        raise _problem(error, path) from error
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
    except Exception as error:
        raise _problem(error, path) from error


def _problem(error: Exception, path: Path) -> FileProblem:
    where = user_line(error.__traceback__) or str(path)
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return FileProblem(f"{where}: {kind}{message(error)}")


def _targets(module: ModuleType) -> list[str]:
    return [n for n, v in vars(module).items() if isinstance(v, AbstractTarget)]


def _only_target(module: ModuleType, path: Path) -> str:
    found = _targets(module)
    if len(found) != 1:
        there = f"it has {', '.join(found)}" if found else "it has none"
        raise UsageProblem(f"Say which target of {path} to use ({there}): {_HOW}.")
    return found[0]


def _lookup(module: ModuleType, name: str, path: Path) -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    found = ", ".join(f"`{target}`" for target in _targets(module)) or "none"
    raise FileProblem(f"{path} has no `{name}`; the targets in it: {found}.")


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
