"""Arguments of a numpyro model: which are data, and what they are called."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path
from jaxtyping import Array
from numpyro.primitives import Messenger

from ..core._dtype import check_resolution
from ._trace import Conditioned


def as_data(tree: Any, argument: str) -> Any:
    """Put arrays on the device, and make NumPy's integers and bools plain ones."""

    def convert(path, leaf):
        where = f"`{argument}` at {keystr(path, simple=True, separator='.')!r}"
        if hasattr(leaf, "to_numpy"):
            leaf = leaf.to_numpy()  # pandas, xarray
        if isinstance(leaf, np.integer | np.bool_):
            return leaf.item()  # a length or a switch
        if isinstance(leaf, np.ndarray | np.generic):
            if leaf.dtype.kind not in "biufc":
                raise ValueError(f"{where} must be numbers; got dtype {leaf.dtype}.")
            if leaf.dtype.kind != "c":
                check_resolution(leaf, where)
            leaf = jnp.asarray(leaf)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
            _refuse_nan(where, leaf)
        return leaf

    return tree_map_with_path(convert, tree)


def _refuse_nan(where, leaf):
    if isinstance(leaf, Tracer):
        return
    count = int(np.isnan(np.asarray(leaf)).sum())
    if count:
        raise ValueError(
            f"{where} must not contain NaN; got {count}. Where a mask hides missing values, "
            "put any value of the support in their place."
        )


def has_arrays(tree: Any) -> bool:
    """Whether a leaf is an array."""
    return any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(tree))


def constant_data(
    fn: Callable, args: tuple, kwargs: dict[str, Any], observed: Iterable[Array]
) -> dict[str, Array]:
    """Return array arguments that are no observed values, by the name of the parameter."""
    data = [np.asarray(value) for value in observed]
    found = {}
    for name, argument in _named(fn, args, kwargs).items():
        for path, leaf in tree_leaves_with_path(argument):
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
    return _innermost(fn.fn) if isinstance(fn, Messenger | Conditioned) else fn
