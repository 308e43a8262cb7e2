"""Arguments of a numpyro model: which are data, and what they are called."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path
from jaxtyping import Array
from numpyro.primitives import Messenger

from ..core._code import Held
from ..core._numbers import as_array, is_numbers
from ._trace import Conditioned, Holding, WholePlates


def as_data(tree: Any, argument: str) -> Any:
    """Put arrays on the device, make NumPy's integers and bools plain, hold what is no key.

    Columns of pandas and the like are arrays; a table is held as it is, for numpyro's own
    inference gives it to the model as it is.
    """

    def convert(path, leaf):
        where = f"`{argument}` at {keystr(path, simple=True, separator='.')!r}"
        if isinstance(leaf, np.integer | np.bool_):
            return leaf.item()  # a length or a switch
        is_array = isinstance(leaf, np.ndarray | np.generic | jax.Array)
        if isinstance(leaf, Tracer) or not (is_array or joined(leaf) or _is_column(leaf)):
            return leaf if _is_hashable(leaf) else Held(leaf)
        if is_array and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            return leaf
        return as_array(leaf, where, "biufc")

    # Tuples of whole numbers are shapes and sizes, which belong to the program.
    whole = lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x)
    joined = lambda x: x is not tree and is_numbers(x) and not whole(x)
    return tree_map_with_path(convert, tree, is_leaf=joined)


def _is_column(leaf) -> bool:
    return hasattr(leaf, "to_numpy") and not hasattr(leaf, "columns")


def _is_hashable(leaf) -> bool:
    try:
        hash(leaf)
    except TypeError:
        return False
    return True


def held(fn: Callable, args: tuple, kwargs: dict[str, Any], names: set[str]):
    """Return arguments in which the arrays of some parameters are part of the program."""

    def hold(leaf):
        return Held(np.asarray(leaf)) if isinstance(leaf, jax.Array) else leaf

    positional = [*_named(fn, args, {}), *(f"args[{i}]" for i in range(len(args)))]
    new = [jax.tree.map(hold, a) if n in names else a for n, a in zip(positional, args)]
    return tuple(new), {
        n: jax.tree.map(hold, a) if n in names else a for n, a in kwargs.items()
    }


def parameters(fn: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments by the name of the parameter, as `held` takes them."""
    positional = [*_named(fn, args, {}), *(f"args[{i}]" for i in range(len(args)))]
    return {**dict(zip(positional, args)), **kwargs}


class Call(NamedTuple):
    """Arguments of a model at new inputs."""

    args: tuple  # positional ones
    kwargs: dict[str, Any]  # keyword arguments
    grow: bool = False  # whether plates may have more entries than in the fit: new groups


def renewed(fn: Callable, old: Call, args: tuple, kwargs: Mapping[str, Any]) -> Call:
    """Return new arguments, with those old ones that belong to the program and not to data."""
    new = Call(as_data(args, "inputs"), as_data(dict(kwargs), "inputs"))
    try:
        signature = inspect.signature(_innermost(fn))
        given = signature.bind_partial(*new.args, **new.kwargs).arguments
    except TypeError as error:
        raise ValueError(f"`predict` must be given inputs of the model: {error}.") from None
    except ValueError:  # a callable without a signature that Python can tell
        given, signature = {}, None
    named = _named(fn, old.args, old.kwargs)
    kept = {k: v for k, v in named.items() if k not in given and not has_arrays(v)}
    if signature is not None:
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        kinds = {k: p.kind for k, p in signature.parameters.items()}
        kept = {k: v for k, v in kept.items() if kinds.get(k, by_name[0]) in by_name}
    holding = {n for n, v in parameters(fn, old.args, old.kwargs).items() if _holds(v)}
    return Call(*held(fn, new.args, {**kept, **new.kwargs}, holding))


def argument_name(fn: Callable, call: Call, path: str) -> str:
    """Return the name of an array among arguments, given its path in the target."""
    where, _, rest = path.partition(".")
    number, _, inside = rest.partition(".")
    if where == "kwargs":
        name = number
    elif where == "args":
        names = list(_named(fn, call.args, {}))
        name = names[int(number)] if int(number) < len(names) else f"args[{number}]"
    else:
        return f"`{path}`"
    return f"`{name}`" + (f" at {inside!r}" if inside else "")


def has_arrays(tree: Any) -> bool:
    """Whether a leaf is an array."""
    leaves = jax.tree.leaves(tree)
    return _holds(tree) or any(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)


def _is_held(leaf) -> bool:
    return isinstance(leaf, Held) and isinstance(leaf.value, np.ndarray)


def _holds(tree) -> bool:
    return any(_is_held(leaf) for leaf in jax.tree.leaves(tree, is_leaf=_is_held))


def constant_data(
    fn: Callable, args: tuple, kwargs: dict[str, Any], observed: Iterable[Array]
) -> dict[str, Array]:
    """Return array arguments that are no observed values, by the name of the parameter."""
    data = [np.asarray(value) for value in observed]
    found = {}
    for name, argument in _named(fn, args, kwargs).items():
        for path, leaf in tree_leaves_with_path(argument, is_leaf=_is_held):
            leaf = jax.numpy.asarray(leaf.value) if _is_held(leaf) else leaf
            if not isinstance(leaf, jax.Array) or leaf.dtype.kind not in "biufc":
                continue
            if not any(np.array_equal(leaf, value) for value in data):
                inside = keystr(path, simple=True, separator=".")
                found[f"{name}.{inside}" if inside else name] = leaf
    return found


def _named(fn, args, kwargs) -> dict[str, Any]:
    try:
        bound = inspect.signature(_innermost(fn)).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):  # a callable without a signature that Python can tell
        return dict(kwargs)
    named = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        else:
            named[name] = value
    return named


def _innermost(fn):
    """Return the function inside handlers, whose own signature is `(*args, **kwargs)`."""
    if isinstance(fn, functools.partial):
        return functools.partial(_innermost(fn.func), *fn.args, **fn.keywords)
    return _innermost(fn.fn) if isinstance(fn, _WRAPPERS) else fn


_WRAPPERS = Messenger | Conditioned | Holding | WholePlates
