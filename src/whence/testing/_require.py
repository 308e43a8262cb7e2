"""Assertions whose messages say what is wrong."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree


def require(condition: bool | np.bool_, sentence: str) -> None:
    """Raise `AssertionError` with `sentence` unless `condition`."""
    if not condition:
        raise AssertionError(sentence)


def require_arrays(tree: PyTree, what: str, *, others: bool = False) -> None:
    """All leaves are arrays of strong types, or if `others` what is not a number either."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        where = f"leaf `{jax.tree_util.keystr(path)}` of the {what}"
        if others and not eqx.is_array_like(leaf) and not hasattr(leaf, "dtype"):
            continue
        require(
            hasattr(leaf, "dtype"),
            f"{where} must be an array; got {leaf!r}. Write `jnp.asarray(x, dtype)`.",
        )
        require(
            not getattr(leaf, "weak_type", False),
            f"{where} has a weak type: it was made from a Python number. Write "
            "`jnp.asarray(x, dtype)`.",
        )


def require_same_structure(a: PyTree, b: PyTree, name_a: str, name_b: str) -> None:
    """Two pytrees agree in structure, shapes, dtypes and weakness of types."""
    ours, others = jax.tree.structure(a), jax.tree.structure(b)
    require(ours == others, f"The {name_b} has structure {others}, the {name_a} {ours}.")
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b))
    for (path, x), y in pairs:
        where = f"Leaf `{jax.tree_util.keystr(path)}`"
        if not hasattr(x, "dtype"):
            require(x is y or x == y, f"{where} of the {name_b} is {y}, of the {name_a} {x}.")
            continue
        require(
            hasattr(y, "dtype") and x.shape == y.shape and x.dtype == y.dtype,
            f"{where} of the {name_b} is {_kind(y)}, of the {name_a} {_kind(x)}.",
        )
        require(not getattr(y, "weak_type", False), f"{where} of the {name_b} has a weak type.")


def require_close(a: PyTree, b: PyTree, name: str, otherwise: str, exact: bool = False) -> None:
    """Two pytrees are numerically equal, up to rounding unless `exact`."""
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
        if not hasattr(x, "dtype"):
            continue
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jr.key_data(x), jr.key_data(y)
        x, y = np.asarray(x), np.asarray(y)
        if x.dtype.kind == "f" and not exact:
            rtol = 1e-6 if x.dtype == np.float64 else 1e-3
            scale = np.max(np.abs(y), initial=1e-3, where=np.isfinite(y))
            same = np.allclose(x, y, rtol=rtol, atol=rtol * scale, equal_nan=True)
        else:
            same = np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        require(
            same,
            f"{name} differs from one {otherwise} at leaf `{jax.tree_util.keystr(path)}`: "
            f"{_shortly(x)} against {_shortly(y)}.",
        )


def _shortly(array: np.ndarray) -> str:
    return np.array2string(array.ravel()[:3], precision=6) + (" ..." if array.size > 3 else "")


def _kind(leaf) -> str:
    if not hasattr(leaf, "dtype"):
        return f"the {type(leaf).__name__} {leaf!r}"
    return f"{leaf.dtype} of shape {leaf.shape}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, as a sentence."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip()
    return line if line.endswith((".", "!", "?")) else f"{line}."
