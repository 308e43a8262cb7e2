"""Draws made elsewhere, checked and put into the form of our own."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core._cache import compiled
from ..core._engine import Sample
from ..core._flat import position_shapes
from ..core._provenance import provenance, versions
from ..core._require import require_target
from ..core._target import AbstractTarget, NamesLatents, Unconstrains
from ..core._tree import named_leaves
from ..diagnostics._diagnose import check_method
from ..diagnostics._records import AbstractRecord
from ._map_draws import map_draws, variables


def external(
    target: AbstractTarget,
    draws: Any,
    unconstrained: bool,
    stats: Mapping[str, Any] | None,
    log_weights: Any,
    engine: str,
    method: str | None,
    record: AbstractRecord | None,
) -> dict[str, Any]:
    """Return what a `Posterior` of draws made elsewhere holds; see `Posterior.from_draws`."""
    require_target(target)
    method = check_method(method, is_weighted=log_weights is not None)
    if unconstrained:
        positions = _check_positions(target, draws)
    else:
        positions = _from_variables(target, draws)
    lead = jax.tree.leaves(positions)[0].shape[:2]
    checked: dict[str, Any] = {
        name: _check_lead(f"`stats[{name!r}]`", value, lead)
        for name, value in dict(stats or {}).items()
    }
    if log_weights is not None:
        log_weights = _check_weights(log_weights, lead)
    sample = Sample(positions, checked, method=method, log_weights=log_weights, record=record)
    return {"sample": sample, "engine": engine, "manifest": external_manifest(target, engine)}


def external_manifest(target: Any, engine: str) -> dict[str, Any]:
    """Return the manifest of draws that no engine of ours made."""
    packages = ("whence", "jax", "numpy")
    return {
        **provenance(target),
        "engine": engine,
        "external": True,
        "versions": {name: versions()[name] for name in packages},
    }


class _Known(NamedTuple):
    """What a target's draws consist of.

    Attributes:
        latents: Shapes of the latents that make a position, by name.
        others: Names of what follows from them: derived values, fixed latents.
        tree: Structure of a draw whose leaves are the latents; None if it is a dict or
            model, which are made by name.
    """

    latents: dict[str, tuple[int, ...]]
    others: tuple[str, ...]
    tree: Any


def _known(target) -> _Known:
    position = position_shapes(target)
    draw = jax.eval_shape(target.constrain, position)
    if not isinstance(target, NamesLatents):
        shapes = {name: leaf.shape for name, leaf in named_leaves(draw).items()}
        return _Known(shapes, (), jax.tree.structure(draw))
    latents = {latent.name: latent.shape for latent in target.latents}
    named = jax.eval_shape(lambda p: variables(target, p), position)
    return _Known(latents, tuple(n for n in named if n not in latents), None)


def _from_variables(target, draws):
    if not isinstance(draws, Mapping):
        raise ValueError(
            "`draws` must be a dict of arrays (chain, draw, ...) by name, or positions with "
            f"`unconstrained=True`; got {type(draws).__name__}."
        )
    if not isinstance(target, Unconstrains):
        raise ValueError(
            f"{type(target).__name__} has no `unconstrain` to make positions of draws; pass "
            "positions, with `unconstrained=True`."
        )
    known = _known(target)
    names = ", ".join(known.latents)
    for name in known.latents:
        if name not in draws:
            raise ValueError(f"`draws` must have the latents {names}; {name!r} is missing.")
    for name in draws:
        if name not in known.latents and name not in known.others:
            raise ValueError(f"`draws` has {name!r}, but the target has {names}.")
    values, lead = {}, None
    for name, shape in known.latents.items():
        values[name] = _check_array(f"`draws[{name!r}]`", draws[name], shape, lead)
        lead = values[name].shape[:2]
    rest = (known.tree,)
    program = compiled(map_draws, _there_and_back, target, values, rest)
    positions, back = jax.tree.map(
        np.asarray, program.call(_there_and_back, target, values, rest)
    )
    _check_support(values, back)
    _check_finite(positions)
    _check_fixed(draws, {n: back[n] for n in back if n in known.others})
    return positions


def _there_and_back(target, values, tree):
    if tree is None:
        position = target.unconstrain(values)
        return position, variables(target, position)
    # The values came through compiled code, which sorts them: in a draw's order again.
    like = tree.unflatten([0] * tree.num_leaves)
    position = target.unconstrain(tree.unflatten([values[n] for n in named_leaves(like)]))
    return position, named_leaves(target.constrain(position))


def _check_support(values, back) -> None:
    """Outside of its support a value has no position, or one that stands for another."""
    for name, value in values.items():
        tolerance = 1e-3 if value.dtype == np.float32 else 1e-4
        error = np.abs(back[name] - value)
        wrong = ~(error <= tolerance * np.maximum(1.0, np.abs(value)))
        wrong |= ~np.isfinite(error)
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            shown = value[first[:2]]
            raise ValueError(
                f"`draws[{name!r}]` must lie inside the support of its prior; got "
                f"{np.array2string(shown, precision=4, threshold=8)} at chain {first[0]}, "
                f"draw {first[1]}, and {int(wrong.sum()) - 1} more elements that do not."
            )


def _check_positions(target, positions):
    shapes = position_shapes(target)
    want, got = jax.tree.structure(shapes), jax.tree.structure(positions)
    if want != got:
        raise ValueError(
            "`draws` must have the structure of the target's positions "
            f"({', '.join(named_leaves(shapes))}); got {', '.join(named_leaves(positions))}."
        )
    leaves, lead = [], None
    for (name, leaf), value in zip(named_leaves(shapes).items(), jax.tree.leaves(positions)):
        array = _check_array(f"`draws[{name!r}]`", value, leaf.shape, lead)
        lead = array.shape[:2]
        leaves.append(array.astype(leaf.dtype))
    return want.unflatten(leaves)


def _check_array(where, value, shape, lead) -> np.ndarray:
    """Return an array `(chain, draw, *shape)` of finite floating-point numbers."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{where} must be an array (chain, draw, ...): {error}") from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{where} must be real numbers; got dtype {array.dtype}.")
    if array.ndim != 2 + len(shape) or array.shape[2:] != shape:
        single = array.ndim == 1 + len(shape) and array.shape[1:] == shape
        raise ValueError(
            f"{where} must have shape (chain, draw{''.join(f', {n}' for n in shape)}); got "
            f"{array.shape}." + (" Write `x[None]` for a single chain." if single else "")
        )
    if array.size == 0 and 0 not in shape:
        raise ValueError(f"{where} must have at least one draw; got shape {array.shape}.")
    if lead is not None and array.shape[:2] != lead:
        raise ValueError(
            f"{where} must have as many chains and draws as the others, {lead}; got "
            f"{array.shape[:2]}."
        )
    finite = np.isfinite(array)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{where} must be finite; got {int((~finite).sum())} values that are not, the "
            f"first at index {first}."
        )
    return array.astype(jnp.result_type(float))


def _check_finite(positions) -> None:
    for name, value in named_leaves(positions).items():
        if not np.isfinite(value).all():
            raise ValueError(
                f"`draws[{name!r}]` must lie inside the support of its prior; got values on "
                "its boundary, or too close to it for this precision."
            )


def _check_fixed(draws, fixed) -> None:
    for name, value in fixed.items():
        if name in draws and not np.allclose(draws[name], value):
            raise ValueError(
                f"`draws[{name!r}]` must be the value that the model gives this latent, "
                f"{value[0, 0]}; got others."
            )


def _check_lead(where, value, lead) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != lead:
        raise ValueError(f"{where} must have shape (chain, draw), {lead}; got {array.shape}.")
    return array


def _check_weights(log_weights, lead) -> np.ndarray:
    array = _check_lead("`log_weights`", log_weights, lead).astype(float)
    if lead[0] != 1:
        raise ValueError(
            f"Weighted draws must be in one chain; got {lead[0]}. Write `x.reshape(1, -1, "
            "*x.shape[2:])`."
        )
    if np.isnan(array).any() or not np.isfinite(array.max()):
        raise ValueError(
            "`log_weights` must not be NaN, nor infinite except for weights of zero; got a "
            f"largest one of {array.max()}."
        )
    return array - array.max() - np.log(np.sum(np.exp(array - array.max())))
