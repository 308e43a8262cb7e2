"""NaN and infinite numbers in the data of a target: harmless only where nothing reads them."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr
from jax.tree_util import keystr, tree_flatten_with_path

from ._cache import compiled
from ._indices import leaf_name
from ._target import AbstractTarget

_POINTS = 4  # random starting points at which the density is looked at


def check_values(target: Any) -> None:
    """Raise if numbers in a target are not finite and count: cheap, before every fit.

    A bound of infinity is allowed if density and gradient are finite. NaN is, too, if
    moreover nothing depends on what stands in its place (a mask hides it), or if the model
    itself asks where it is (`jnp.isnan`, `jnp.isfinite`).

    Args:
        target: The target; arrays in it are data.

    Raises:
        ValueError: Naming the array, and the first entry that is not finite.
    """
    found, structure = tree_flatten_with_path(target)
    bad = [i for i, (_, leaf) in enumerate(found) if not _is_finite(leaf)]
    if not bad or any(isinstance(leaf, Tracer) for _, leaf in found):
        return
    leaves = [leaf for _, leaf in found]
    is_target = isinstance(target, AbstractTarget)
    density, usable = _density(target) if is_target else (np.zeros(0), np.zeros(0, bool))
    for i in bad:
        array = np.asarray(leaves[i], float)
        if not is_target and not np.isnan(array).any():
            continue
        if usable.any() and (not np.isnan(array).any() or _asks(target, array.shape)):
            continue
        if usable.any():
            known = array[np.isfinite(array)]
            fills = (known.min(), known.max()) if known.size else (0.0, 1.0)
            others = [
                structure.unflatten([*leaves[:i], _filled(leaves[i], x), *leaves[i + 1 :]])
                for x in fills
            ]
            if all(np.array_equal(_density(o)[0][usable], density[usable]) for o in others):
                continue
        where = leaf_name(target, keystr(found[i][0], simple=True, separator="."))
        raise ValueError(not_finite(where, array))


def require_finite(new: Any, old: Any) -> None:
    """Raise if new inputs of a target have NaN or infinite numbers where the old have none.

    Args:
        new: The target with the new inputs.
        old: The target as it was fitted.

    Raises:
        ValueError: As `check_values`.
    """
    known = {keystr(path): leaf for path, leaf in tree_flatten_with_path(old)[0]}
    for path, leaf in tree_flatten_with_path(new)[0]:
        if not _is_finite(leaf) and _is_finite(known.get(keystr(path))):
            where = leaf_name(new, keystr(path, simple=True, separator="."))
            raise ValueError(not_finite(where, np.asarray(leaf, float)))


def not_finite(where: str, array: np.ndarray) -> str:
    """Say which entries of an array are not finite, and what to do about them."""
    is_nan = bool(np.isnan(array).any())
    bad = np.isnan(array) if is_nan else np.isinf(array)
    first = tuple(int(i) for i in np.argwhere(bad)[0]) if array.ndim else ()
    at = f", the first at index {first}" if first else ""
    if is_nan:
        return (
            f"{where} must not contain NaN; got {int(bad.sum())}{at}. Leave these rows out, "
            'hide them by a mask, or declare the missing values as latents ("Missing data" in '
            "docs/models.md; of observed data, `missing=` of `whence.condition` does)."
        )
    return (
        f"{where} must be finite; got {int(bad.sum())} infinite numbers{at}. Leave these rows "
        "out, or put in their place what they stand for. (A bound may be infinite where log "
        "density and gradient stay finite.)"
    )


def _is_finite(leaf) -> bool:
    if isinstance(leaf, Tracer) or not hasattr(leaf, "dtype"):
        return True
    return not jnp.issubdtype(leaf.dtype, jnp.floating) or bool(
        np.isfinite(np.asarray(leaf)).all()
    )


def _filled(leaf, value):
    return jnp.where(jnp.isnan(leaf), jnp.asarray(value, leaf.dtype), leaf)


def _density(target) -> tuple[np.ndarray, np.ndarray]:
    key = jr.key(0)
    found = compiled(_evaluate, target, key).call(target, key)
    density, usable = (np.asarray(x) for x in found)
    return density, usable


def _evaluate(target, key):
    def at(key):
        density, gradient = jax.value_and_grad(target.log_density)(target.init(key=key))
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((density, gradient))]
        return density, jnp.stack(finite).all()

    return jax.lax.map(at, jr.split(key, _POINTS))


def _asks(target, shape: tuple[int, ...]) -> bool:
    """Whether the log density asks of an array of this shape whether it is NaN."""
    position = jax.eval_shape(lambda key: target.init(key=key), jr.key(0))
    dynamic = [leaf for leaf in jax.tree.leaves(target) if hasattr(leaf, "dtype")]
    leaves, structure = jax.tree.flatten(target)

    def density(data, position):
        data = iter(data)
        filled = [next(data) if hasattr(leaf, "dtype") else leaf for leaf in leaves]
        return structure.unflatten(filled).log_density(position)

    return _has_question(jax.make_jaxpr(density)(dynamic, position), shape)


def _has_question(jaxpr: Any, shape: tuple[int, ...]) -> bool:
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        kind, inputs = eqn.primitive.name, eqn.invars
        # Not `eq`: that is how supports of laws are tested.
        asks = kind == "is_finite" or (kind == "ne" and inputs[0] is inputs[1])
        if asks and inputs[0].aval.shape == shape:
            return True
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                inside = getattr(inner, "jaxpr", inner)
                if isinstance(inside, Jaxpr) and _has_question(inside, shape):
                    return True
    return False
