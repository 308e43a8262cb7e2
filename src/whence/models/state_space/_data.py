"""What may be data of a state-space model, said before anything is compiled."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._seen import require_whole_events
from ._parts import law


def split_missing(owner: str, y: Any, inputs: tuple) -> tuple[Any, tuple]:
    """Return data without NaN, with inputs and, if any is missing, what was observed.

    Args:
        owner: Name of the model.
        y: By time: an array, or a dict of them; NaN (or masked) where it is missing.
        inputs: As the user gave them: inputs by time, and what was observed besides.

    Raises:
        ValueError: If they cannot be a sequence, or nothing was observed.
    """
    if len(inputs) > 2:
        raise ValueError(
            f"{owner} takes data and one pytree of inputs by time, "
            f"`whence.condition(model, y, inputs)`; got {len(inputs)} inputs."
        )
    covariates, observed = (*inputs, None, None)[:2]
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((y, inputs))):
        return y, inputs
    split = {n: _split(v) for n, v in (y if isinstance(y, Mapping) else {"y": y}).items()}
    lengths = {len(values) for values, _ in split.values()}
    lengths |= {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in _arrays(covariates)}
    if len(lengths) != 1:
        raise ValueError(
            f"Data and inputs of {owner} must have one row for each time; got lengths "
            f"{sorted(lengths)}."
        )
    if isinstance(y, Mapping):
        values = {name: value for name, (value, _) in split.items()}
        seen = {name: mask for name, (_, mask) in split.items()}
    else:
        values, seen = split["y"]
    if observed is not None:
        seen = jax.tree.map(lambda a, b: a & np.asarray(b, bool), seen, observed)
    if not any(mask.any() for mask in jax.tree.leaves(seen)):
        raise ValueError("All numbers of `y` are missing: there is nothing to fit.")
    if all(mask.all() for mask in jax.tree.leaves(seen)):
        return values, (() if covariates is None else (covariates,))
    return values, (covariates, seen)


def _arrays(tree: Any) -> list[Any]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda v: isinstance(v, list) or hasattr(v, "shape"))
    return [np.asarray(leaf) for leaf in leaves]


def _split(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return values, with one that was observed in place of each missing, and a mask."""
    array = np.ma.filled(y.astype(float), np.nan) if isinstance(y, np.ma.MaskedArray) else y
    array = np.asarray(array)
    if array.dtype.kind not in "biuf" or array.ndim < 1 or array.size == 0:
        raise ValueError(
            "`y` must be an array of real numbers whose first axis is time; got dtype "
            f"{array.dtype}, shape {array.shape}."
        )
    seen = ~np.isnan(array) if array.dtype.kind == "f" else np.ones(array.shape, bool)
    if seen.all() or not seen.any():
        return array, seen
    return np.where(seen, array, array[seen][0]), seen


def check_parts(draw: Any, y: Any, inputs: Any, observed: Any) -> None:
    """Refuse methods whose laws are of other shapes than states and data.

    Args:
        draw: The model, with values.
        y: Data of one time.
        inputs: Of that time.
        observed: What was observed at all times.

    Raises:
        ValueError: Naming the method, the rule and the shapes.
    """
    owner, first = type(draw).__name__, law(draw, "initial")
    shape, time = tuple(first.shape()), jnp.zeros((), jnp.int32)
    support: Any = first.support
    discrete = support is not None and support.is_discrete
    state = jnp.zeros(shape, jnp.int32 if discrete else jnp.result_type(float))
    after = tuple(law(draw, "transition", state, time, inputs).shape())
    if after != shape:
        raise ValueError(
            f"`transition` of {owner} must return a law of the shape of the state, {shape} (as "
            f"`initial` says); got {after}."
        )
    found = law(draw, "emission", state, time, inputs)
    if isinstance(found, dict) != isinstance(y, Mapping) or (
        isinstance(found, dict) and set(found) != set(y)
    ):
        want = sorted(found) if isinstance(found, dict) else "a single array"
        got = sorted(y) if isinstance(y, Mapping) else "a single array"
        raise ValueError(f"`y` must have what `emission` describes ({want}); got {got}.")
    named = found if isinstance(found, dict) else {"y": found}
    data = y if isinstance(y, Mapping) else {"y": y}
    for name, part in named.items():
        want, got = tuple(part.shape()), jnp.shape(data[name])
        if want != got:
            raise ValueError(
                f"`emission` of {owner} must return a law of the shape that the data of one "
                f"time have, {got} (the first axis of `{name}` is time); got {want}, which "
                "would broadcast, or not fit."
            )
        mask = observed[name] if isinstance(observed, Mapping) else observed
        require_whole_events(f"`emission` of {owner}", name, part, mask)
