"""What functions and classes of a user mean: their code, and the values it reads.

A compiled program is found again by the classes and shapes of its arguments. But a model
also reads globals, variables of enclosing functions and defaults, and in a notebook these
change: a program that has their old values must not be used again. A stored run must not go
on with another model.

Code of installed packages is taken as it is known by name.
"""

import contextlib
import dataclasses
import dis
import functools
import hashlib
import os
import sys
import sysconfig
from collections import ChainMap, deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial, all_leaves

_DEPTH = 12  # of values in values
# With these, code reads a value by a name that it holds as text.
_BY_TEXT = {"getattr", "globals", "import_module", "modules", "__import__"}
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "IMPORT_NAME")
_INSTALLED = tuple(
    sorted({sysconfig.get_path(n) for n in ("purelib", "platlib", "stdlib")})
    + [str(Path(__file__).parents[1])]
)


def code_key(tree: Any) -> bytes:
    """Return a hash of the code in a pytree, and of the values that the code reads.

    Args:
        tree: Modules, functions and arrays; arrays that are leaves do not count.
    """
    return code_read(tree)[0]


def code_read(tree: Any) -> tuple[bytes, int, list[Any]]:
    """Return `code_key`, the bytes of arrays among those values, and jitted functions."""
    reader = _Reader()
    reader.outer(tree)
    return reader.digest.digest(), reader.num_bytes, reader.jitted


def code_parts(tree: Any) -> dict[str, str]:
    """Return a hash of each prior, method, function and setting in a pytree, by name.

    The same in another process, as far as Python's instructions are.
    """
    parts: dict[str, str] = {}

    def add(name: str, read: Callable[["_Reader"], None]) -> None:
        reader = _Reader()
        read(reader)
        parts[name] = reader.digest.hexdigest()[:12]

    def visit(name: str, value: Any, depth: int = _DEPTH) -> None:
        if depth < 0:
            return
        if isinstance(value, eqx.Module):
            cls = type(value)
            parts[f"{name}{cls.__qualname__}"] = "class"
            for method, function in _methods(cls):
                add(f"{name}{cls.__qualname__}.{method}", lambda r, f=function: r.inner(f))
            for field in dataclasses.fields(value):
                inside = f"{name}{cls.__qualname__}.{field.name}"
                if {"latent", "latents"} & set(field.metadata):
                    add(inside, lambda r, f=field: r.metadata(f))
                else:
                    visit(f"{inside}.", getattr(value, field.name, None), depth - 1)
        elif isinstance(value, tuple | list):
            for i, item in enumerate(value):
                visit(f"{name}{i}.", item, depth - 1)
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(f"{name}{key}.", item, depth - 1)
        elif isinstance(value, Held):
            parts[name.rstrip(".")] = value.content
        elif isinstance(value, bool | int | float | str) or _is_code(value):
            add(name.rstrip("."), lambda r: r.inner(value))
        elif isinstance(value, Partial):
            for part in (value.func, value.args, value.keywords):
                visit(name, part, depth - 1)

    visit("", tree)
    return parts


def named_arrays(value: Any, name: str = "", depth: int = 6) -> Iterator[tuple[str, Any]]:
    """Yield names and arrays: those that a value holds, or that code of a user in it reads.

    Args:
        value: Functions, modules, containers of them.
        name: Of the value itself.
        depth: How many values in values are looked into.
    """
    if depth < 0 or isinstance(value, Tracer):
        return
    inside: list[tuple[str, Any]] = []
    if isinstance(value, type | ModuleType):
        return
    value = getattr(value, "to_numpy", lambda: value)()
    if isinstance(value, np.ndarray | jax.Array):
        yield f"`{name}`", value
    elif isinstance(value, functools.partial):
        inside = [("", value.func), *value.keywords.items()]
        inside += [(f"argument {i}", item) for i, item in enumerate(value.args)]
    elif isinstance(value, MethodType):
        inside = [("", value.__self__), ("", value.__func__)]
    elif isinstance(value, FunctionType) and _is_users(value):
        inside = _read_by(value)
    elif isinstance(value, dict):
        inside = [(f"{name}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, tuple | list):
        inside = [(f"{name}[{i}]" if name else "", item) for i, item in enumerate(value)]
    elif hasattr(value, "__dict__"):
        own = vars(value)
        inside = [(f"{name}.{n}" if name else n, item) for n, item in own.items()]
        inside += [("", function) for _, function in _methods(type(value))]
    for n, item in inside:
        yield from named_arrays(item, n, depth - 1)


def _read_by(function: FunctionType) -> list[tuple[str, Any]]:
    """Return what a function reads besides its arguments, by name."""
    code, found = function.__code__, []
    for name, cell in zip(code.co_freevars, function.__closure__ or ()):
        with contextlib.suppress(ValueError):  # not filled yet
            found.append((name, cell.cell_contents))
    names = _Reader().code(code, None)
    known = function.__globals__
    found += [(n, known[n]) for n in _loaded(function, names) & known.keys()]
    return found + list((function.__kwdefaults__ or {}).items())


@jax.tree_util.register_static
class Held:
    """A value that is part of a program although it is not hashable, or an array.

    Two are equal if they hold the same, as far as a hash of the content can tell.

    Attributes:
        value: What is held.
    """

    def __init__(self, value: Any):
        """Hold a value."""
        self.value = value

    @property
    def content(self) -> str:
        """A hash of type and content."""
        reader = _Reader()
        reader.inner(self.value)
        return f"{type(self.value).__qualname__} {reader.digest.hexdigest()}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)


class _Reader:
    """Feeds a hash with what it meets; each function and class once."""

    def __init__(self):
        self.digest = hashlib.blake2b(digest_size=16)
        self.seen: dict[int, Any] = {}  # holds what it names: an id is not used again
        self.num_bytes = 0  # of arrays
        self.jitted: list[Any] = []

    def say(self, *words: Any) -> None:
        self.digest.update("\0".join(map(str, words)).encode())

    def outer(self, value: Any, depth: int = _DEPTH) -> None:
        """Read the code of a part of a target or an engine, not its settings and arrays."""
        if depth < 0:
            return
        if isinstance(value, eqx.Module):
            self.cls(type(value))
            for field in dataclasses.fields(value):
                self.metadata(field)
                self.outer(getattr(value, field.name, None), depth - 1)
        elif _is_code(value):
            self.inner(value)
        elif isinstance(value, Partial):
            self.outer((value.func, value.args, value.keywords), depth - 1)
        elif isinstance(value, tuple | list):
            for item in value:
                self.outer(item, depth - 1)
        elif isinstance(value, dict):
            for item in value.values():
                self.outer(item, depth - 1)

    def metadata(self, field: Any) -> None:
        for name, value in field.metadata.items():
            if name in ("latent", "latents"):
                self.inner(value)

    def inner(self, value: Any, depth: int = _DEPTH) -> None:
        """Read a value that code reads: by value, as far as that can be told."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            self.say(type(value).__name__, repr(value))
        elif isinstance(value, Tracer) or depth < 0:
            self.say(type(value).__qualname__)
        elif isinstance(value, np.ndarray | np.generic | jax.Array):
            self.array(value)
        elif isinstance(value, FunctionType):
            self.function(value, depth)
        elif isinstance(value, MethodType):
            self.inner(value.__self__, depth - 1)
            self.function(value.__func__, depth)
        elif isinstance(value, BuiltinMethodType):
            self.say(value.__name__)
            self.inner(value.__self__, depth - 1)
        elif isinstance(value, type):
            self.cls(value, depth)
        elif isinstance(value, ModuleType):
            self.say(value.__name__)
        elif isinstance(value, ContextVar):
            self.inner(value.get(None), depth - 1)
        elif value is os.environ:  # its entries, by the code that names them
            self.say("environ")
        elif isinstance(value, functools.partial):
            self.inner((value.func, value.args, value.keywords), depth - 1)
        elif hasattr(value, "__wrapped__"):  # as `jax.jit` leaves it
            self.inner(value.__wrapped__, depth - 1)
            function, jitted = _plain(value), getattr(value, "_cached", value)  # of Equinox
            is_users = isinstance(function, FunctionType) and _is_users(function)
            self.jitted += [jitted] if is_users and hasattr(jitted, "clear_cache") else []
        elif isinstance(value, dict | MappingProxyType):
            self.say("dict", len(value))
            for name, item in value.items():
                self.inner(name, depth - 1)
                self.inner(item, depth - 1)
        elif isinstance(value, tuple | list | set | frozenset | deque):
            self.say(type(value).__name__, len(value))
            ordered = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
            for item in ordered:
                self.inner(item, depth - 1)
        elif hasattr(value, "to_numpy"):
            self.labelled(value, depth)
        else:
            self.instance(value, depth)

    def array(self, value: Any) -> None:
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        self.num_bytes += array.nbytes
        self.say("array", array.shape, array.dtype)
        content = repr(array.tolist()).encode() if array.dtype == object else array
        self.digest.update(np.ascontiguousarray(content).tobytes())

    def labelled(self, value: Any, depth: int) -> None:
        """Read a column or table of pandas and the like: numbers, names and labels."""
        if hasattr(value, "columns"):
            for name in value.columns:
                self.inner((name, value[name]), depth - 1)
        else:
            self.array(value.to_numpy())
            self.inner(getattr(value.dtype, "categories", None), depth - 1)
        coords = {name: labels.values for name, labels in getattr(value, "coords", {}).items()}
        parts = (getattr(value, name, None) for name in ("name", "index", "dims"))
        self.inner((*parts, coords), depth - 1)

    def instance(self, value: Any, depth: int) -> None:
        if id(value) in self.seen:
            return
        self.seen[id(value)] = value
        self.cls(type(value), depth)
        slots = [n for n in _slots(type(value)) if hasattr(value, n)]
        if slots or hasattr(value, "__dict__"):
            own = {n: getattr(value, n) for n in slots} | getattr(value, "__dict__", {})
            for name, item in sorted(own.items()):
                self.say(name)
                self.inner(item, depth - 1)
        elif " at 0x" not in repr(value):  # made in C: fractions, dates, ranges
            self.say(repr(value))

    def cls(self, cls: type, depth: int = _DEPTH) -> None:
        self.say("class", cls.__qualname__)
        if id(cls) in self.seen:
            return
        self.seen[id(cls)] = cls
        for name, value in _methods(cls):
            self.say(name)
            self.function(value, depth - 1)
        for base in cls.__mro__:
            for name, value in sorted(vars(base).items()) if _is_own(base) else ():
                if not name.startswith("__") and not isinstance(_plain(value), FunctionType):
                    self.say(name)
                    self.inner(value, depth - 1)

    def function(self, function: FunctionType, depth: int) -> None:
        self.say("function", function.__qualname__)
        if id(function) in self.seen:
            return
        self.seen[id(function)] = function
        if hasattr(function, "__wrapped__"):  # what a library made of a user's function
            self.inner(function.__wrapped__, depth - 1)
        if not _is_users(function):
            return
        names = self.code(function.__code__, function.__doc__)
        self.inner(function.__defaults__, depth - 1)
        self.inner(function.__kwdefaults__, depth - 1)
        for cell in function.__closure__ or ():
            try:
                self.inner(cell.cell_contents, depth - 1)
                self.module(cell.cell_contents, names, depth - 1)
            except ValueError:  # not filled yet
                self.say("empty")
        known = ChainMap(function.__globals__, sys.modules)  # it may import what it reads
        for name in sorted(name for name in _loaded(function, names) if name in known):
            self.say(name)
            self.inner(known[name], depth - 1)
            self.module(known[name], names, depth - 1)

    def module(self, value: Any, names: set[str], depth: int) -> None:
        """Read what code may reach through a module of a user, by the names in that code."""
        if not isinstance(value, ModuleType) or depth < 0 or not _is_own_module(value.__name__):
            return
        for name in sorted(names & vars(value).keys()):
            self.inner(vars(value)[name], depth - 1)
            self.module(vars(value)[name], names, depth - 1)

    def code(self, code: CodeType, doc: str | None) -> set[str]:
        """Read instructions and constants; return the names of globals and attributes."""
        names = set(code.co_names)
        texts = {text for text in code.co_consts if isinstance(text, str)}
        names |= texts if names & _BY_TEXT else set()
        for text in sorted(texts & os.environ.keys() if names & {"environ", "getenv"} else ()):
            self.say(text, os.environ[text])
        self.digest.update(code.co_code)
        self.say(*code.co_names, *code.co_varnames)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                names |= self.code(constant, None)
            elif doc is None or constant != doc:
                self.inner(constant)
        return names


def _is_code(value: Any) -> bool:
    """Whether a value is a function, or may be called as one and is no pytree of data."""
    other = eqx.Module | contextlib.ContextDecorator  # the latter as meshes of JAX are
    return callable(value) and not isinstance(value, other) and all_leaves([value])


def _loaded(function: FunctionType, names: set[str]) -> set[str]:
    """Return which of these names in its code a function may read as globals.

    A global is not read where an attribute has its name, as that of a latent often has.
    """
    return names if names & _BY_TEXT else names & _globals_of(function.__code__)


@cache
def _globals_of(code: CodeType) -> frozenset[str]:
    found = {i.argval for i in dis.get_instructions(code) if i.opname in _LOADS}
    inside = (_globals_of(part) for part in code.co_consts if isinstance(part, CodeType))
    return frozenset(found).union(*inside)


def _slots(cls: type) -> list[str]:
    found = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    names = [n for slots in found for n in ([slots] if isinstance(slots, str) else slots)]
    return [name for name in names if not name.startswith("__")]


def _methods(cls: type) -> list[tuple[str, FunctionType]]:
    """Return the functions that a user wrote into a class and its bases."""
    found = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items() if _is_own(base) else ():
            value = _plain(value)
            if isinstance(value, FunctionType) and _is_users(value):
                found[name] = value
    return sorted(found.items())


def _is_own(cls: type) -> bool:
    return _is_own_module(cls.__module__)


def _plain(value: Any) -> Any:
    """Return the function in a property, a static or class method, or a decorated one."""
    value = value.fget if isinstance(value, property) else value
    value = getattr(value, "__func__", value)
    while hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    return value


def _is_users(function: FunctionType) -> bool:
    name = function.__code__.co_filename
    if name == "<string>":  # run by `exec`; or made by `dataclasses`, whose names begin so
        return not function.__name__.startswith("__")
    return not _is_installed(name)


@cache
def _is_installed(path: str) -> bool:
    return path.startswith(_INSTALLED)


@cache
def _is_own_module(name: str) -> bool:
    """Whether a module is no installed one."""
    path = getattr(sys.modules.get(name), "__file__", None)
    return (
        name == "__main__"
        or path is None
        and name not in sys.builtin_module_names
        or (path is not None and not _is_installed(path))
    )
