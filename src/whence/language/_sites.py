"""The latents of a model, visited in order: all visits of a model go through `walk`.

`walk` rebuilds a model field by field. At each latent it makes the prior from the model
so far, gives it the shape that `dims`, `shape` and `coords` ask for, and lets `choose`
say the value. Sampling the prior, mapping a position to a draw, its inverse and the log
density differ only in `choose`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.tree_util import keystr, tree_flatten_with_path, tree_unflatten
from jaxtyping import Array

from ._latent import UNDRAWN, Latent


class Site(NamedTuple):
    """What is known of a latent before it has a value; hashable.

    Attributes:
        name: Path of the field, for example `net.weight`.
        shape: Shape of the value.
        unconstrained_shape: Shape of its part of the position.
        dims: Names of its axes, or empty.
        fixed: Whether it was given a value at construction.
        starts: Whether it says where to start.
        local: Whether it has one value for each data row, along its first axis.
    """

    name: str
    shape: tuple[int, ...]
    unconstrained_shape: tuple[int, ...]
    dims: tuple[str, ...]
    fixed: bool
    starts: bool = False
    local: bool = False


class Prior(NamedTuple):
    """A latent's prior at one point of the model's other values, ready to use.

    `value = forward(base_value)`: with `noncentered` the base is a standardised variable,
    else it is the value itself. `bijector` maps unconstrained space to the base.
    """

    name: str
    spec: Latent
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    base: dist.Distribution
    bijector: Any
    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    value_prior: dist.Distribution

    @property
    def unconstrained_shape(self) -> tuple[int, ...]:
        """Shape of this latent's part of the position."""
        if self.base is self.value_prior:
            return tuple(self.bijector.inverse_shape(self.shape))
        return tuple(self.base.shape())


def walk(model: Any, choose: Callable[[Prior, Any], Any], path: str = "", outer: Mapping = {}):
    """Rebuild `model` with a value for each latent.

    Args:
        model: A `Model`, or any other value (returned as it is, Models inside it rebuilt).
        choose: Called with the prior of a latent and its present value (`UNDRAWN` or the
            value given at construction); returns the value.
        path: Prefix of names.
        outer: Coordinates of the enclosing model.
    """
    coords = {**outer, **model.coords}
    new = object.__new__(type(model))
    for field in dataclasses.fields(model):
        object.__setattr__(new, field.name, getattr(model, field.name))
    for field in dataclasses.fields(model):
        value, name = getattr(model, field.name), path + field.name
        if "latent" in field.metadata:
            value = choose(make_prior(new, field.metadata["latent"], name, coords), value)
        elif "latents" in field.metadata:
            specs = field.metadata["latents"](new)
            value = {
                n: choose(make_prior(new, spec, path + n, coords), value[n])
                for n, spec in specs.items()
            }
        else:
            value = _walk_inside(value, choose, name, coords)
        object.__setattr__(new, field.name, value)
    return new


def is_model(value: Any) -> bool:
    """Whether `value` is a `Model` (which this module must not import)."""
    return hasattr(type(value), "__whence_model__")


def _walk_inside(value, choose, name, coords):
    if is_model(value):
        return walk(value, choose, name + ".", coords)
    if value is None or isinstance(value, jax.Array | int | float | str):
        return value
    leaves, treedef = tree_flatten_with_path(value, is_leaf=is_model)
    if not any(is_model(leaf) for _, leaf in leaves):
        return value
    new = []
    for path, leaf in leaves:
        if is_model(leaf):
            leaf = walk(
                leaf, choose, f"{name}.{keystr(path, simple=True, separator='.')}.", coords
            )
        new.append(leaf)
    return tree_unflatten(treedef, new)


def make_prior(model: Any, spec: Latent, name: str, coords: Mapping) -> Prior:
    """Make the prior of one latent from the model so far, with its shape resolved."""
    prior = _call(spec.prior, model, name, "prior")
    if not isinstance(prior, dist.Distribution):
        raise ValueError(
            f"The prior of latent `{name}` must be a numpyro distribution; got {prior!r}."
        )
    if prior.support is not None and prior.support.is_discrete:
        raise ValueError(
            f"Latent `{name}` is discrete ({type(prior).__name__}), and gradient-based "
            "engines need continuous latents. Sum it out of the likelihood (for example "
            "`numpyro.distributions.MixtureSameFamily`, or a forward recursion for a "
            "hidden Markov model), or use a continuous relaxation."
        )
    shape, dims = _resolve_shape(model, spec, prior, name, coords)
    event = len(prior.event_shape)
    batch = shape[: len(shape) - event]
    try:
        fits = jnp.broadcast_shapes(prior.batch_shape, batch) == batch
    except ValueError:
        fits = False
    if not fits or shape[len(shape) - event :] != tuple(prior.event_shape):
        raise ValueError(
            f"Latent `{name}` is to have shape {shape}"
            + (f" (dims {dims})" if dims else "")
            + f", but its prior {type(prior).__name__} has batch shape "
            f"{tuple(prior.batch_shape)} and event shape {tuple(prior.event_shape)}, which "
            "does not broadcast to it."
        )
    expanded = prior if tuple(prior.batch_shape) == batch else prior.expand(batch)
    if spec.noncentered:
        base, forward, inverse = _standardise(prior, batch, name)
    else:
        base, forward, inverse = expanded, lambda x: x, lambda x: x
    try:
        bijector = dist.biject_to(base.support)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"Latent `{name}` has support {base.support!r}, for which numpyro has no "
            "bijection from unconstrained space."
        ) from error
    return Prior(name, spec, shape, dims, base, bijector, forward, inverse, expanded)


def _call(function, model, name, what) -> Any:
    if isinstance(function, dist.Distribution) or not callable(function):
        return function
    try:
        return function(model)
    except ValueError as error:  # numpyro says which parameter, not of which latent
        raise ValueError(f"The {what} of latent `{name}` could not be made: {error}") from error
    except (TypeError, AttributeError) as error:
        undrawn = [
            f.name
            for f in dataclasses.fields(model)
            if "latent" in f.metadata and getattr(model, f.name) is UNDRAWN
        ]
        raise ValueError(
            f"The {what} of latent `{name}` could not be made: {error}. It may use only "
            f"fields declared above it; not drawn at that point: {', '.join(undrawn)}."
        ) from error


def _resolve_shape(model, spec, prior, name, coords):
    natural = tuple(prior.shape())
    shape = _call(spec.shape, model, name, "shape")
    if spec.local:
        return _local_shape(spec, shape, prior, name, coords)
    if not spec.dims:
        return (natural if shape is None else tuple(shape)), ()
    if shape is None and len(spec.dims) == len(natural):
        shape = natural  # a scalar axis of the prior may still be widened by coords
        sizes = [len(coords[d]) if d in coords else n for d, n in zip(spec.dims, natural)]
    elif shape is not None and len(shape) == len(spec.dims):
        sizes = list(shape)
        for d, n in zip(spec.dims, shape):
            if d in coords and len(coords[d]) != n:
                raise ValueError(
                    f"`shape` of latent `{name}` must agree with `coords`; got {n} along "
                    f"{d!r}, which has {len(coords[d])} labels."
                )
    elif shape is None:
        missing = [d for d in spec.dims if d not in coords]
        if missing:
            raise ValueError(
                f"Latent `{name}` has dims {spec.dims}, but `coords` of "
                f"{type(model).__name__} has no {missing[0]!r}; give its labels or its "
                f"length, as in `{type(model).__name__}(coords={{{missing[0]!r}: labels}})`."
            )
        sizes = [len(coords[d]) for d in spec.dims]
    else:
        raise ValueError(
            f"`dims` of latent `{name}` must name each axis of its shape {shape}; got "
            f"{spec.dims}."
        )
    return tuple(int(n) for n in sizes), spec.dims


def _local_shape(spec, shape, prior, name, coords):
    """Return shape and dims of a latent with one value per data row."""
    axis = spec.row_axis
    if axis not in coords:
        raise ValueError(
            f"Latent `{name}` is local, with one value per data row, and the number of rows is "
            "not known before `condition`. To draw from the prior without data, give it: "
            f"`coords={{{axis!r}: 100}}`."
        )
    number = len(coords[axis])
    if shape is None:
        shape = tuple(prior.shape())
        per_row = prior.batch_shape[:1] == (number,)  # its parameters have one entry per row
        shape = shape[1:] if per_row else shape
    if len(spec.dims) not in (0, 1, 1 + len(shape)):
        raise ValueError(
            f"`dims` of local latent `{name}` must name the axis of rows, or it and each axis "
            f"of the shape {tuple(shape)} of one row; got {spec.dims}."
        )
    stem = name.replace(".", "_")
    unnamed = tuple(f"{stem}_dim_{i}" for i in range(1, 1 + len(shape)))
    return (number, *map(int, shape)), (axis, *(spec.dims[1:] or unnamed))


LOCATION_SCALE = {  # with parameters that standardising keeps
    dist.Normal: (),
    dist.Cauchy: (),
    dist.Laplace: (),
    dist.Logistic: (),
    dist.Gumbel: (),
    dist.StudentT: ("df",),
}


def _standardise(prior, batch, name):
    """Return the base of a location-scale prior and the maps from and to the value."""
    if isinstance(prior, dist.MultivariateNormal):
        base = dist.Normal(0.0, 1.0).expand(batch + tuple(prior.event_shape)).to_event(1)
        loc, tril = jnp.asarray(prior.loc), jnp.asarray(prior.scale_tril)

        def inverse(x):
            shift = jnp.broadcast_to(x - loc, x.shape)[..., None]
            low = jnp.broadcast_to(tril, (*x.shape, x.shape[-1]))
            return jax.lax.linalg.triangular_solve(low, shift, left_side=True, lower=True)[
                ..., 0
            ]

        return base, lambda z: loc + (tril @ z[..., None])[..., 0], inverse
    if isinstance(prior, dist.LogNormal):
        base = dist.Normal(0.0, 1.0).expand(batch)
        loc, scale = prior.loc, prior.scale
        return base, lambda z: jnp.exp(loc + scale * z), lambda x: (jnp.log(x) - loc) / scale
    for cls, names in LOCATION_SCALE.items():
        if type(prior) is cls:
            shape_parameters = {n: getattr(prior, n) for n in names}
            base = cls(**shape_parameters, loc=0.0, scale=1.0).expand(batch)
            loc, scale = prior.loc, prior.scale
            return base, lambda z: loc + scale * z, lambda x: (x - loc) / scale
    known = [c.__name__ for c in (*LOCATION_SCALE, dist.MultivariateNormal, dist.LogNormal)]
    raise ValueError(
        f"`noncentered=True` of latent `{name}` needs a location-scale prior "
        f"({', '.join(known)}); got {type(prior).__name__}."
    )
