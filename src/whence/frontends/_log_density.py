"""`from_log_density()`: a log density written by hand becomes a `Target`."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import PyTree
from numpyro.distributions.constraints import Constraint, real

from ..core import AbstractTarget
from ..core._indices import check_indices
from ..core._key import seeded
from ..core._names import check_variable_names
from ..core._numbers import arrays_of
from ..core._results import InferenceWarning
from ..core._show import target_html
from ..core._slopes import unread
from ..core._tree import named_leaves
from ..core._types import Scalar
from ..core._values import check_values
from ._bijection import bijection, log_det


class LogDensityTarget(AbstractTarget):
    """A log density on constrained space; made by `from_log_density`.

    Attributes:
        fn: Maps a draw to its log density, in nats; arrays in it are data.
        supports: One constraint for each leaf of a draw; arrays in them are data.
        leaves: Shape and dtype of each leaf of a draw.
        structure: Structure of a draw.
    """

    fn: Any
    supports: tuple[Any, ...]
    leaves: tuple[jax.ShapeDtypeStruct, ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    @seeded
    def init(self, *, key):
        keys = jr.split(key, len(self.leaves))
        return self.structure.unflatten(
            jr.uniform(k, bijector.inverse_shape(x.shape), x.dtype, minval=-2.0, maxval=2.0)
            for k, bijector, x in zip(keys, self._bijections(), self.leaves)
        )

    def leaf_name(self, path: str) -> str:
        """Return the name of an array of this target for messages, given its path."""
        return f"`{path}`"

    def log_density(self, position):
        """Return `fn` of the draw plus the log-Jacobian of `constrain`, in nats."""
        draw = self.constrain(position)
        return jnp.asarray(self.fn(draw)) + self._log_det(position, draw)

    def log_jacobian(self, position: PyTree) -> Scalar:
        """Return the log-determinant of `constrain`."""
        return self._log_det(position, self.constrain(position))

    def _log_det(self, position, draw):
        points, values = map(self.structure.flatten_up_to, (position, draw))
        return jnp.asarray(sum(map(log_det, self._bijections(), points, values)))

    def constrain(self, position):
        return self._map(lambda bijector, x: bijector(x), position)

    def unconstrain(self, draw: PyTree) -> PyTree:
        """Return the position of a draw; the inverse of `constrain`."""
        return self._map(lambda bijector, x: bijector.inv(jnp.asarray(x)), draw)

    def _repr_html_(self) -> str:
        return target_html(self, type(self).__name__)

    def _map(self, function, tree):
        leaves = self.structure.flatten_up_to(tree)
        return self.structure.unflatten(map(function, self._bijections(), leaves))

    def _bijections(self):
        return [bijection(support, "`supports`") for support in self.supports]


def from_log_density(
    fn: Callable[[Any], Any], example: PyTree, supports: PyTree | None = None
) -> LogDensityTarget:
    """Make a target of a log density over a pytree.

    Args:
        fn: Takes a draw, a pytree like `example`; returns its log density in nats, up to a
            constant, on the space that `supports` describes. The log-Jacobian of the way
            there is added here. If `fn` is a pytree, as a `jax.tree_util.Partial` or an
            Equinox module, its arrays are data: others of the same shape reuse what is
            compiled.
        example: Any draw: its shapes, dtypes and structure count, its values do not.
        supports: A pytree of `numpyro.distributions.constraints`. It may stop above the
            leaves of `example` (one constraint for a whole branch) and leave entries out;
            what is left out or None is real.

    Raises:
        ValueError: If `example` and `supports` do not fit together, or `fn` does not map
            such a draw to a real scalar.
    """
    if not callable(fn):
        raise ValueError(f"`fn` must be a function of a draw; got {fn!r}.")
    fn = arrays_of(fn, "of `fn`")
    paths, structure = tree_flatten_with_path(example)
    named_leaves(example)  # raises
    if not paths:
        raise ValueError(f"`example` must have at least one array; got {example!r}.")
    leaves = tuple(_floating(path, leaf) for path, leaf in paths)
    found = _by_leaf(supports, [path for path, _ in paths])
    for (path, _), leaf, support in zip(paths, leaves, found):
        _check_shape(_at("supports", path), support, leaf)
    target = LogDensityTarget(fn, found, leaves, structure)
    _check_function(target)
    check_variable_names([named_leaves(example)], {})
    check_values(target)
    check_indices(target)
    return target


def _at(argument, path) -> str:
    where = keystr(path, simple=True, separator=".")
    return f"`{argument}`" + (f" at {where!r}" if where else "")


def _floating(path, leaf) -> jax.ShapeDtypeStruct:
    where = _at("example", path)
    try:
        dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(leaf))
    except TypeError as error:
        raise ValueError(f"{where} must be an array of floats; got {leaf!r}.") from error
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{where} must be floating-point; got dtype {dtype}. Write `1.0` for `1`; discrete "
            "variables must be summed out of the density."
        )
    return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype)


def _by_leaf(supports, paths) -> tuple[Any, ...]:
    """Return the support of each leaf: the one given at its path or above it."""
    is_leaf = lambda x: x is None or isinstance(x, Constraint)
    found: list[Any] = [real] * len(paths)
    for path, support in tree_flatten_with_path(supports, is_leaf=is_leaf)[0]:
        below = [i for i, p in enumerate(paths) if p[: len(path)] == path]
        if not below:
            known = ", ".join(keystr(p, simple=True, separator=".") for p in paths)
            raise ValueError(
                f"`supports` must have the structure of `example` (with {known}); got an "
                f"entry at {keystr(path, simple=True, separator='.')!r}."
            )
        if support is not None:
            bijection(support, _at("supports", path))  # raises
            found = [support if i in below else s for i, s in enumerate(found)]
    return tuple(found)


def _check_shape(where, support, leaf) -> None:
    bijector = bijection(support, where)
    try:
        shape = bijector.inverse_shape(leaf.shape)
        back = jax.eval_shape(bijector, jax.ShapeDtypeStruct(shape, leaf.dtype)).shape
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{where} is {support!r}, which cannot have the shape of `example` there, "
            f"{leaf.shape}: {error}"
        ) from error
    if back != leaf.shape:
        raise ValueError(
            f"{where} is {support!r}, which makes shape {back} of the shape of `example` "
            f"there, {leaf.shape}."
        )


def _check_function(target: LogDensityTarget) -> None:
    draw = target.structure.unflatten(target.leaves)

    def density_at(draw):
        value = target.fn(draw)
        if value is None:
            raise ValueError("it returned None. Is a `return` missing?")
        return jnp.asarray(value)

    try:
        closed, density = jax.make_jaxpr(density_at, return_shape=True)(draw)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"`fn` failed on a draw like `example`: {error}") from error
    if density.shape != () or not jnp.issubdtype(density.dtype, jnp.floating):
        raise ValueError(
            "`fn` must return one real number, the log density; got shape "
            f"{density.shape} and dtype {density.dtype}."
        )
    blind, flat = unread(closed, draw)
    if blind or flat:
        named = ", ".join(repr(name) for name in (*blind, *flat))
        warnings.warn(
            f"`fn` has no slope along {named} of a draw: it does not depend on it, or only "
            "compares, rounds or stops gradients. If it does not depend on it and there are no "
            "bounds, there is no posterior; engines that follow gradients do not see the rest.",
            InferenceWarning,
            stacklevel=3,
        )
