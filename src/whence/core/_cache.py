"""Compiled programs, kept and found again by structure.

`jax.jit` keeps its own cache, but compiling ahead of time lets us say how long tracing
and compiling took, call one executable from several threads, and count traces. Arrays in
the arguments are data; everything else, the engine's configuration included, is part of
the program.
"""

import contextlib
import ctypes
import gc
import os
import platform
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import numpy as np

from ._code import code_read
from ._results import errors_of_the_model

_PROGRAMS: OrderedDict[Any, tuple[Any, int]] = OrderedDict()  # with bytes of their constants
_MOST_PROGRAMS = 128
_MOST_BYTES = 2**27  # of arrays in closures and globals: they are constants of a program
traces = 0  # how often anything was traced; tests count with it


class Program(NamedTuple):
    """A compiled function of the array leaves of its arguments.

    Attributes:
        call: Takes what the function took; non-arrays must equal those at compilation.
        trace_seconds: Time to trace and lower; zero if the program was found.
        compile_seconds: Time in the compiler (or its persistent cache); zero if found.
    """

    call: Callable[..., Any]
    trace_seconds: float
    compile_seconds: float


def remembered(build: Callable[..., Any], *args: Any) -> tuple[Any, bool]:
    """Return `build(*args)`, from the cache if it was built for arguments like these.

    Args:
        build: A module-level function; its identity is part of the key.
        *args: Pytrees; of leaves that are arrays only shape and dtype matter. What code
            of a user in them reads (globals, closures) counts by value.

    Returns:
        What `build` returned, and whether it was found.

    Raises:
        ValueError: If a static leaf cannot be hashed.
    """
    code, constants, jitted = code_read(args)
    key = (build, _structure(args), code)
    try:
        found = key in _PROGRAMS
    except TypeError as error:
        raise ValueError(
            "Fields of a model or engine that are not arrays must be hashable, because they "
            f"are part of the compiled program: {error}."
        ) from error
    if found:
        _PROGRAMS.move_to_end(key)
        return _PROGRAMS[key][0], True
    for function in jitted:  # traced, maybe, when what they read had other values
        function.clear_cache()
    value = build(*args)
    _PROGRAMS[key] = value, constants
    kept = sum(size for _, size in _PROGRAMS.values())
    while len(_PROGRAMS) > 1 and (len(_PROGRAMS) > _MOST_PROGRAMS or kept > _MOST_BYTES):
        kept -= _PROGRAMS.popitem(last=False)[1][1]
    return value, False


def compiled(function: Callable[..., Any], *args: Any) -> Program:
    """Return `function` compiled for arguments like `args`, from the cache if possible.

    Args:
        function: A module-level function; its identity is part of the key.
        *args: Pytrees; leaves that are arrays are data, all others are static.

    Raises:
        ValueError: If a static leaf cannot be hashed.
    """
    program, found = remembered(compile_now, function, *args)
    return program._replace(trace_seconds=0.0, compile_seconds=0.0) if found else program


def remembering[F: Callable[..., Any]](function: F) -> F:
    """Return `function` compiled at its first call for arguments like those it gets.

    As `eqx.filter_jit`, but a changed global or closure of a user's code is noticed.

    Args:
        function: A module-level function of positional arguments, called outside of traces.
    """

    @wraps(function)
    def call(*args: Any) -> Any:
        return compiled(function, *args).call(*args)

    return cast(F, call)


def compile_now(function: Callable[..., Any], *args: Any) -> Program:
    """Compile `function` for arguments like `args`; see `compiled`."""
    global traces
    use_persistent_cache()
    dynamic, static = eqx.partition(args, is_data)

    def of_arrays(dynamic):
        return function(*eqx.combine(dynamic, static))

    of_arrays.__name__ = f"whence_{function.__name__}"
    traces += 1
    start = time.perf_counter()
    lowered = jax.jit(of_arrays).lower(dynamic)
    middle = time.perf_counter()
    executable = lowered.compile()
    end = time.perf_counter()

    def call(*args):
        with errors_of_the_model():
            return jax.block_until_ready(executable(eqx.filter(args, is_data)))

    return Program(call, middle - start, end - middle)


def _structure(args):
    dynamic, static = eqx.partition(args, is_data)
    leaves, treedef = jax.tree.flatten(static)
    return (
        treedef,
        tuple((type(leaf), leaf) for leaf in leaves),
        tuple(_aval(leaf) for leaf in jax.tree.leaves(dynamic)),
        jax.tree.structure(dynamic),
        (jax.config.jax_enable_x64, jax.default_backend(), jax.config.jax_disable_jit),
    )


def is_data(leaf: Any) -> bool:
    """Whether a leaf of an argument is data rather than part of the program."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _aval(leaf):
    return (np.shape(leaf), str(leaf.dtype), getattr(leaf, "weak_type", False))


def clear_programs() -> None:
    """Forget all compiled programs of this process, and give their memory back."""
    _PROGRAMS.clear()
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what is freed, unless told


def use_persistent_cache() -> None:
    """Turn JAX's compilation cache on, unless the user chose, or `WHENCE_CACHE=off`."""
    wish = os.path.expanduser(os.environ.get("WHENCE_CACHE", ""))
    if jax.config.jax_compilation_cache_dir is not None or wish.lower() in ("off", "0", "no"):
        return
    folder = Path(wish) if wish else _user_cache() / "whence" / platform.machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a cache is a convenience: a read-only home must not stop a fit
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home())))
    return Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))
