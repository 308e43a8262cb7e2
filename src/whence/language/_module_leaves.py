"""Which arrays of a module become latents, and which modules cannot be taken row by row."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, GetAttrKey, SequenceKey, keystr, tree_flatten_with_path

from ._module_priors import Leaf
from ._sites import is_model


def check_module(module: Any) -> None:
    """Raise `ValueError` unless a module can be a function of one row and nothing else."""
    if isinstance(module, type) or not isinstance(module, eqx.Module) or not callable(module):
        raise ValueError(
            "`module` must be an instance of an Equinox module with a `__call__`; got "
            f"{module!r}."
        )
    special = lambda node: isinstance(node, eqx.nn.Dropout | eqx.nn.StateIndex)
    nodes = tree_flatten_with_path(module, is_leaf=lambda n: special(n) or is_model(n))[0]
    for path, node in nodes:
        where = keystr(path, simple=True, separator=".")
        if is_model(node):
            raise ValueError(
                f"`module` must not hold a `whence.Model`; got {type(node).__name__} at "
                f"{where!r}. Make both fields of one `whence.Model`."
            )
        if isinstance(node, eqx.nn.StateIndex):
            raise ValueError(
                f"`module` must be without state, but {where!r} has some (`BatchNorm` and "
                "`SpectralNorm` do): its rows would not be independent. Use `LayerNorm` or "
                "`GroupNorm`."
            )
        if isinstance(node, jax.Array) and jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"`module` must be without randomness of its own, but {where!r} is a key."
            )
        if isinstance(node, eqx.nn.Dropout) and not node.inference and node.p != 0:
            raise ValueError(
                f"`module` must be without randomness of its own, but {where!r} is a "
                "`Dropout`. Switch it off: `equinox.nn.inference_mode(module)`."
            )


def floating_leaves(module: Any) -> list[Leaf]:
    """Return the arrays of floating-point numbers in a module."""
    found = []
    for path, value in tree_flatten_with_path(module)[0]:
        if eqx.is_inexact_array(value):
            name = keystr(path, simple=True, separator=".")
            found.append(Leaf(name, value, _owners(module, path)))
    return found


def _owners(module: Any, path) -> tuple[Any, ...]:
    """Return the modules that a path leads through."""
    nodes = [module]
    for key in path[:-1]:
        if isinstance(key, GetAttrKey):
            nodes.append(getattr(nodes[-1], key.name))
        elif isinstance(key, SequenceKey):
            nodes.append(nodes[-1][key.idx])
        elif isinstance(key, DictKey):
            nodes.append(nodes[-1][key.key])
        else:
            break  # a pytree of someone else's, which need not say what is inside
    return tuple(node for node in nodes if isinstance(node, eqx.Module))


def select(module: Any, where: Any) -> list[Leaf]:
    """Return the arrays that are to become latents."""
    leaves = floating_leaves(module)
    if where is not None:
        leaves = _selected(module, where, leaves)
    if not leaves:
        raise ValueError(
            "`module` must have an array of floating-point numbers to become a latent; got "
            + ("none." if where is None else "none that `where` selects.")
        )
    for leaf in leaves:
        if jnp.issubdtype(leaf.value.dtype, jnp.complexfloating):
            raise ValueError(
                f"`{leaf.path}` must be real to become a latent; got dtype "
                f"{leaf.value.dtype}. Hold its real and imaginary parts as two arrays."
            )
    return leaves


def _selected(module, where, leaves: list[Leaf]) -> list[Leaf]:
    if not callable(where):
        raise ValueError(f"`where` must be a function; got {where!r}.")
    if len(inspect.signature(where).parameters) == 2:
        return [leaf for leaf in leaves if where(leaf.path, leaf.value)]
    # Marks in place of arrays tell which were returned, whatever else is like them.
    paths = iter([leaf.path for leaf in leaves])
    marked = jax.tree.map(
        lambda x: _Mark(next(paths)) if eqx.is_inexact_array(x) else x, module
    )
    try:
        nodes = where(marked)
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise ValueError(
            "`where` must be a function of the module that returns parts of it, or of a path "
            f"and an array that returns a bool; it failed: {error}."
        ) from error
    found = jax.tree.leaves(nodes)
    if isinstance(nodes, bool) or not any(isinstance(x, _Mark) for x in found):
        raise ValueError(
            "`where` must return arrays of the module or parts that have some (or, as a "
            f"function of a path and an array, a bool); got {nodes!r}."
        )
    chosen = {x.path for x in found if isinstance(x, _Mark)}
    return [leaf for leaf in leaves if leaf.path in chosen]


class _Mark:
    """Stands for an array."""

    def __init__(self, path: str):
        self.path = path

    def __repr__(self) -> str:
        return f"<{self.path}>"
