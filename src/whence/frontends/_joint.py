"""A joint distribution of TensorFlow Probability walked with chosen values."""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from ..core._dtype import relaxed
from ..core._types import Scalar
from ._trace import Latent

Values = dict[str, Any]
Choose = Callable[[str, Any], Any]


class Part(NamedTuple):
    """One component of a joint distribution, given those before it."""

    distribution: Any  # the distribution that the joint yields
    value: Any  # the value chosen for it


class Skeleton(NamedTuple):
    """A joint distribution without its arrays; hashable.

    A joint is a pytree, but one that can only be filled with arrays: in place of the
    placeholders that go through a compiled program it would be made wrongly, or not at all.
    """

    treedef: Any  # its structure as a pytree
    others: tuple[Any, ...]  # leaves that are no arrays, with None for each array

    def fill(self, arrays: tuple[Any, ...]) -> Any:
        """Return the joint distribution with these arrays."""
        remaining = iter(arrays)
        leaves = [next(remaining) if x is None else x for x in self.others]
        with quietly():
            return self.treedef.unflatten(leaves)


def take_arrays(joint: Any) -> tuple[tuple[Any, ...], Skeleton]:
    """Return the arrays of a joint distribution, and the rest of it."""
    try:
        leaves, treedef = jax.tree.flatten(joint)
    except AttributeError:  # a Named joint without functions forgets to be a pytree
        leaves, treedef = jax.tree.flatten(joint, is_leaf=lambda _: True)
    arrays = tuple(x for x in leaves if eqx.is_array(x))
    return arrays, Skeleton(treedef, tuple(None if eqx.is_array(x) else x for x in leaves))


class JointStructure(NamedTuple):
    """What does not depend on the numbers in joint and data; hashable."""

    names: tuple[str, ...]  # all components, in the order of the joint
    sites: tuple[Latent, ...]  # the latents
    derived: tuple[Latent, ...]  # components that the others determine (`Deterministic`)
    dims: tuple[tuple[str, tuple[str, ...]], ...] = ()  # names of axes, by component


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Let TensorFlow Probability mix types, and use names that JAX has deprecated."""
    with warnings.catch_warnings(), relaxed():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@functools.cache
def library() -> Any:
    """Return TensorFlow Probability on JAX, or say how to install it."""
    try:
        with quietly():
            import tensorflow_probability.substrates.jax as tfp
    except (ImportError, AttributeError) as error:  # an old release fails with the latter
        raise ImportError(
            "`from_tfp` needs TensorFlow Probability on JAX, which could not be imported "
            f"({error}). Install it with `pip install 'whence[tfp]'`."
        ) from error
    return tfp


def walk(joint: Any, names: tuple[str, ...], choose: Choose) -> dict[str, Part]:
    """Run through the components of a joint in order, with values that `choose` gives."""
    parts: dict[str, Part] = {}
    value = None
    with quietly():
        generator = joint._model_coroutine()
        for name in names:
            # `send(None)` starts the generator.
            d = generator.send(value)
            d = d.distribution if isinstance(d, joint.Root) else d
            value = choose(name, d)
            parts[name] = Part(d, value)
    return parts


def component_names(joint: Any) -> tuple[str, ...]:
    """Return the names that a joint distribution gives to its components."""
    found: list[str] = []

    def visit():
        # It draws once to find out, and remembers what it drew: not in the user's own joint.
        found.extend(joint.copy()._flat_resolve_names())

    with quietly():
        jax.eval_shape(visit)
    return tuple(found)


def bijector(d: Any) -> Any:
    """Return the bijector from unconstrained space to the support; None if it has none."""
    return d.experimental_default_event_space_bijector()


def dtype(d: Any) -> Any:
    """Return the type of the values of a component in the present precision."""
    return jax.dtypes.canonicalize_dtype(d.dtype)


def shape(d: Any) -> tuple[int, ...]:
    """Return the shape of one value of a component."""
    return (*map(int, d.batch_shape), *map(int, d.event_shape))


def forward(d: Any, point: Array) -> Array:
    """Return the value at a point of unconstrained space."""
    return bijector(d).forward(point.astype(dtype(d)))


def log_det(d: Any, point: Array) -> Scalar:
    """Return the log-determinant of the Jacobian of `forward`, summed over the batch."""
    to_support = bijector(d)
    ndims = int(to_support.forward_min_event_ndims)
    terms = to_support.forward_log_det_jacobian(point.astype(dtype(d)), event_ndims=ndims)
    # A constant Jacobian comes once for the whole batch.
    return jnp.sum(jnp.broadcast_to(terms, point.shape[: point.ndim - ndims]))


def pointwise(d: Any, value: Array) -> Array:
    """Return the log-probability of each element that the component declares independent.

    Those are the elements of its batch, and those over which `Independent` and `Sample` sum.
    """
    tfd = library().distributions
    if isinstance(d, tfd.Independent):
        return pointwise(d.distribution, value)
    if isinstance(d, tfd.Sample):
        # `Sample` puts its axes after those of the batch; the base wants them before.
        batch, sample = len(d.batch_shape), len(d.event_shape) - len(d.distribution.event_shape)
        here, there = range(batch, batch + sample), range(sample)
        terms = pointwise(d.distribution, jnp.moveaxis(value, here, there))
        return jnp.moveaxis(terms, there, here)
    return d.log_prob(value)


def inspect_joint(
    skeleton: Skeleton, arrays: tuple[Any, ...], names: tuple[str, ...], observed: Values
) -> tuple[JointStructure, dict[str, Any]]:
    """Return the structure of a joint, and the types of observed values, by tracing alone."""
    found: list[Latent] = []
    dtypes: dict[str, Any] = {}

    def visit(arrays, observed):
        joint = skeleton.fill(arrays)

        def choose(name, d):
            _check_component(joint, name, d)
            if name in observed:
                _check_shape(name, d, observed[name])
                dtypes[name] = dtype(d)
                return observed[name].astype(dtype(d))
            latent, value = _inspect_latent(name, d)
            found.append(latent)
            return value

        walk(joint, names, choose)

    jax.eval_shape(visit, arrays, observed)
    free = tuple(latent for latent in found if math.prod(latent.unconstrained_shape))
    if not free:
        raise ValueError(
            f"`joint` must have at least one latent component; got {', '.join(names)}, all of "
            "them observed or determined by others."
        )
    derived = tuple(latent for latent in found if latent not in free)
    return JointStructure(names, free, derived), dtypes


def _check_component(joint, name, d) -> None:
    kind = type(d).__name__
    if not hasattr(d, "log_prob") or isinstance(d.dtype, Mapping | list | tuple):
        raise ValueError(
            f"Component {name!r} of `joint` must be a distribution of arrays; got {kind}. "
            "Write the parts of a joint inside a joint as components of one."
        )
    if joint.batch_ndims is None and len(d.batch_shape):
        raise ValueError(
            f"Component {name!r} of `joint` ({kind}) has batch shape {tuple(d.batch_shape)}, "
            "so that the joint is many densities and not one. Use `tfd.Sample` or "
            "`tfd.Independent` there, or an AutoBatched joint distribution."
        )


def _check_shape(name, d, value) -> None:
    if value.shape == shape(d):
        return
    hint = ""
    if value.shape[value.ndim - len(shape(d)) :] == shape(d):
        rows = value.shape[: value.ndim - len(shape(d))]
        hint = f" For many rows let the component be a `tfd.Sample(..., {rows})`."
    raise ValueError(
        f"`observed[{name!r}]` must have the shape of a value of its component "
        f"({type(d).__name__}), {shape(d)}; got {value.shape}.{hint}"
    )


def _inspect_latent(name, d) -> tuple[Latent, Any]:
    kind = type(d).__name__
    try:
        to_support = bijector(d)
    except NotImplementedError:
        to_support = None
    if to_support is None or not jnp.issubdtype(dtype(d), jnp.floating):
        raise ValueError(
            f"Component {name!r} of `joint` ({kind}, not observed) must have a bijector from "
            "unconstrained space; it is discrete, or of a kind for which TensorFlow "
            "Probability has no default. Sum a discrete component out (for example "
            "`tfd.MixtureSameFamily` as distribution of the data), or observe it."
        )
    value = d.sample(seed=jr.key(0))
    return Latent(name, value.shape, to_support.inverse(value).shape), value
