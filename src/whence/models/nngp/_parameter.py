"""Parameters that are not known: a prior where a number could stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path
from jaxtyping import Array, Float

from ...core._convert import number
from .laws._pieces import holds


class Unknown(eqx.Module):
    """A parameter that has a prior and no value; `Regression` makes a latent of it."""

    prior: dist.Distribution

    def __jax_array__(self):
        """Say what is wrong where a number is wanted."""
        raise ValueError(
            f"A parameter has a prior ({type(self.prior).__name__}) and no value. `Regression` "
            "makes a latent of it; kernels and laws themselves need numbers."
        )


if TYPE_CHECKING:
    # Whatever computes does so with values in place of all that is unknown.
    Parameter = Array
    Number = float | int | Array | dist.Distribution
else:
    Parameter = Float[Array, ""] | Unknown
    Number = Any  # `parameter` says what is wrong, in words of the model


def parameter(name: str, value: Number, *, zero: bool = False, real: bool = False) -> Any:
    """Return a number as an array, or a prior of one as unknown; raise if it is neither."""
    if isinstance(value, dist.Distribution):
        return Unknown(check_prior(name, value, real))
    return scalar(name, value, 0 if not (real or zero) else None, 0 if zero else None)


def scalar(
    name: str, value: Any, above: int | None = None, least: int | None = None
) -> Float[Array, ""]:
    """Return a number as an array; raise if it is out of bounds, or in compiled code be NaN."""
    dtype = getattr(value, "dtype", None) if isinstance(value, jax.Array) else None
    if not isinstance(value, Tracer):
        known = number(name, above=above, least=least)(value)
        floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
        return jnp.asarray(known, dtype if floating else float)
    if value.shape:
        raise ValueError(f"`{name}` must be a number; got an array of shape {value.shape}.")
    low = -jnp.inf if least is None else least
    good = (
        jnp.isfinite(value) & (value >= low) & (value > (-jnp.inf if above is None else above))
    )
    return jnp.where(good, value, jnp.nan)


def check_prior(name: str, prior: dist.Distribution, real: bool = False) -> dist.Distribution:
    """Return a prior of one number, its numbers as arrays."""
    if prior.batch_shape or prior.event_shape:
        raise ValueError(
            f"The prior of `{name}` must be of one number; got batch shape "
            f"{prior.batch_shape} and event shape {prior.event_shape}."
        )
    support: Any = prior.support
    if support is None:
        raise ValueError(f"The prior of `{name}` must have a support; got {prior!r}.")
    if support.is_discrete:
        got = type(prior).__name__
        raise ValueError(f"The prior of `{name}` must have a density; got {got}, discrete.")
    with jax.ensure_compile_time_eval():
        negative = not real and bool(holds(prior, jnp.asarray(-1e-3)))
    if negative:
        raise ValueError(
            f"The prior of `{name}` must be on the positive numbers, as `LogNormal` or "
            f"`HalfNormal` are; got {type(prior).__name__} on {support!r}."
        )
    # A Python float would be part of the program: another prior, another compilation.
    return jax.tree.map(lambda v: jnp.asarray(v, float) if isinstance(v, float) else v, prior)


def _is_unknown(value: Any) -> bool:
    return isinstance(value, Unknown)


def unknowns(tree: Any) -> dict[str, Unknown]:
    """Return what is unknown in a description, by path."""
    leaves = tree_leaves_with_path(tree, is_leaf=_is_unknown)
    return {_name(path): leaf for path, leaf in leaves if _is_unknown(leaf)}


def with_values[T](tree: T, values: Mapping[str, Any]) -> T:
    """Return a description with values in place of what is unknown."""
    put = lambda path, leaf: values[_name(path)] if _is_unknown(leaf) else leaf
    return tree_map_with_path(put, tree, is_leaf=_is_unknown)


def require_values(tree: Any, what: str) -> None:
    """Raise if anything is unknown."""
    missing = unknowns(tree)
    if missing:
        first, unknown = next(iter(missing.items()))
        raise ValueError(
            f"{what} needs numbers; `{first}` has a prior ({type(unknown.prior).__name__}) "
            "and no value. `Regression` makes a latent of it, and its draws have values."
        )


def _name(path) -> str:
    return keystr(path, simple=True, separator=".")
