"""Local latents: one value for each data row, along an axis of rows that `condition` sizes.

The axis is named in `coords` like any other, so that shapes come about as everywhere. A
minibatch is the same model with fewer rows.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

from ..core._dtype import relaxed
from ..core._types import PRNGKey
from ._latent import Coords
from ._model import Model, all_coords, models_inside
from ._sites import Prior, walk


def give_rows(model: Model, y: Any) -> Model:
    """Return the model with as many rows of local latents as the data have."""
    axes = row_axes(model)
    if not axes:
        return model
    lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else None for leaf in jax.tree.leaves(y)}
    number = lengths.pop()
    if lengths or number is None:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(y)]
        raise ValueError(
            f"`y` must have one entry per data row along a first axis, since "
            f"{type(model).__name__} has local latents; got shapes {shapes}."
        )
    return with_rows(model, number, keep=True)


def row_axes(model: Any) -> set[str]:
    """Return the names that the local latents in a model have for the axis of data rows."""
    axes = set()
    for _, inner in models_inside(model):
        for field in dataclasses.fields(inner):
            spec = field.metadata.get("latent")
            specs = field.metadata["latents"](inner) if "latents" in field.metadata else {}
            axes |= {s.row_axis for s in (spec, *specs.values()) if s is not None and s.local}
    return axes


def with_rows[M: Model](model: M, number: int, keep: bool = False) -> M:
    """Return a model whose local latents have `number` rows.

    Args:
        model: The model.
        number: How many.
        keep: Whether labels of that many rows stay, and others are refused.

    Raises:
        ValueError: If there are labels of another number of rows.
    """
    axes = row_axes(model)
    if not axes:
        return model
    copy = jax.tree.map(lambda x: x, model)
    labels = dict.fromkeys(axes, number)
    if keep:
        labels |= {axis: x for axis, x in all_coords(model).items() if axis in axes}
    for axis, given in labels.items():
        if not isinstance(given, int) and len(given) != number:
            raise ValueError(
                f"`coords` must have one label per data row along {axis!r}, the axis of local "
                f"latents: {number}; got {len(given)}."
            )
    for path, inner in models_inside(copy):
        own = {axis: x for axis, x in labels.items() if not path or axis in inner.coords}
        object.__setattr__(inner, "coords", Coords({**inner.coords, **own}))
    return copy


def redraw_rows[M: Model](draw: M, number: int, *, key: PRNGKey) -> M:
    """Return a draw whose local latents are drawn anew, given the others, for new rows."""
    count = 0

    @relaxed()
    def choose(prior: Prior, value):
        nonlocal count
        count += 1
        if not prior.spec.local:
            return jnp.broadcast_to(value, prior.shape)
        return prior.forward(jnp.asarray(prior.base.sample(jr.fold_in(key, count))))

    return walk(with_rows(draw, number), choose)
