"""Names and labels of axes that the user gives to a target made elsewhere."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

from ..core import AbstractDescribedTarget
from ..core._names import check_variable_names
from ..language._latent import Coords, as_dims

Dims = tuple[tuple[str, tuple[str, ...]], ...]


def name_axes(
    target: AbstractDescribedTarget, coords: Mapping[str, Any], dims: Mapping[str, Any] | None
) -> tuple[Dims, Coords]:
    """Return the names of a target's axes, new ones included, and labels that fit them."""
    labels = Coords(coords)
    shapes = _shapes(target)
    named = {k: v for k, v in target.dims.items() if k in shapes}
    for variable, axes in (dims or {}).items():
        named[variable] = _checked(variable, axes, shapes)
    given = (target.observed_data, target.constant_data)
    drawn = [name for name in shapes if not any(name in group for group in given)]
    check_variable_names((drawn, *given), named)
    lengths: dict[str, int] = {}
    for variable, axes in named.items():
        for axis, length in zip(axes, shapes[variable]):
            if lengths.setdefault(axis, length) != length:
                raise ValueError(
                    f"Axis {axis!r} must have one length; got {lengths[axis]} and, in "
                    f"{variable!r}, {length}."
                )
    for axis, length in labels.sizes:
        if axis not in lengths:
            known = ", ".join(lengths) or "none"
            raise ValueError(f"`coords` must name axes of the target ({known}); got {axis!r}.")
        if lengths[axis] != length:
            raise ValueError(
                f"`coords[{axis!r}]` must have {lengths[axis]} labels, the length of that "
                f"axis; got {length}."
            )
    return tuple(named.items()), labels


def _shapes(target) -> dict[str, tuple[int, ...]]:
    def variables(key):
        return target.variables(target.constrain(target.init(key=key)))

    found = jax.eval_shape(variables, jr.key(0)) | target.observed_data | target.constant_data
    return {name: jnp.shape(value) for name, value in found.items()}


def _checked(variable, axes, shapes) -> tuple[str, ...]:
    if variable not in shapes:
        raise ValueError(
            f"`dims` must name variables of the target ({', '.join(shapes)}); got {variable!r}."
        )
    axes = as_dims(axes, repr(variable))
    if len(axes) != len(shapes[variable]):
        raise ValueError(
            f"`dims[{variable!r}]` must name each of its {len(shapes[variable])} axes; got "
            f"{axes}."
        )
    return axes
