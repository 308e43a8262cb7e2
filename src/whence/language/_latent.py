"""`latent()` and `derived`: how a model declares what is unknown and what to report."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from ..core._convert import flag, whole
from ..core._names import is_text


@jax.tree_util.register_pytree_node_class
class Undrawn:
    """The value of a latent that has none yet. A pytree without leaves."""

    def tree_flatten(self):
        """Return no children."""
        return (), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        """Return the one instance."""
        del aux, children
        return UNDRAWN

    def __repr__(self) -> str:
        return "<not drawn>"

    def __reduce__(self) -> str:
        return "UNDRAWN"  # there is one instance in each process

    def __jax_array__(self):
        """Say what is wrong where a value is wanted."""
        raise TypeError("a latent that has no value yet was used")


UNDRAWN = Undrawn()
ROW_AXIS = "row"  # of local latents without `dims`


@dataclasses.dataclass(frozen=True)
class Latent:
    """A prior declared as a field; see `latent`.

    `start` says where `ModelTarget.init` puts the latent: None is uniform on (-2, 2) in
    unconstrained space, `"prior"` a draw from the prior, an array that value. Of a `local`
    latent `shape` is that of one data row.
    """

    prior: Distribution | Callable[[Any], Distribution]
    shape: tuple[int, ...] | Callable[[Any], tuple[int, ...]] | None
    dims: tuple[str, ...]
    noncentered: bool
    start: Any = None
    local: bool = False

    @property
    def row_axis(self) -> str | None:
        """Name of the axis of data rows; None if the latent has none."""
        return (self.dims[0] if self.dims else ROW_AXIS) if self.local else None


def as_dims(dims: str | tuple[str, ...] | list[str], owner: str) -> tuple[str, ...]:
    """Return `dims` as a tuple of names; refuse duplicates and names ArviZ owns."""
    if not isinstance(dims, str | tuple | list):
        raise ValueError(f"`dims` of {owner} must be a name or a tuple of them; got {dims!r}.")
    dims = (dims,) if isinstance(dims, str) else tuple(dims)
    if len(set(map(repr, dims))) != len(dims):
        raise ValueError(f"`dims` of {owner} must differ from each other; got {dims}.")
    for name in dims:
        if not isinstance(name, str) or not name.strip("./ ") or name in ("chain", "draw"):
            raise ValueError(
                f"`dims` of {owner} must be names other than 'chain' and 'draw', which name "
                f"the axes of a posterior; got {name!r}."
            )
    return dims


def latent(
    prior: Distribution | Callable[[Any], Distribution],
    *,
    shape: int | tuple[int, ...] | Callable[[Any], tuple[int, ...]] | None = None,
    dims: str | tuple[str, ...] = (),
    noncentered: bool = False,
    start: Any = None,
    local: bool = False,
) -> Any:
    """Declare a latent variable as a field of a `Model`.

    Args:
        prior: A `numpyro.distributions` object, or a function of the model so far (the
            fields above this one) that returns one.
        shape: Shape of the value, the event axes included; by default that of the prior.
            A function of the model so far is allowed.
        dims: A name for each axis of the value. An axis that `coords` of the model knows
            takes its length from there.
        noncentered: Sample `(value - loc) / scale` in place of the value, for location-scale
            priors. It changes the geometry that engines see, not the model.
        start: Where runs begin: an array of values (or a number for all elements) inside the
            support, or `"prior"` for draws from the prior. By default uniform on (-2, 2) in
            unconstrained space, as in Stan. All chains begin at one value: no R-hat can tell
            then whether they would have come to it from elsewhere.
        local: One value for each data row, along a leading axis that `condition` gives its
            length (`dims` names it first; without, it is called "row"). `prior` and `shape`
            are those of one row; a prior whose parameters already have one entry per row is
            taken as it is. Given the other latents, the values of different rows must be
            independent: a minibatch then sees those of its rows only, their prior scaled up
            as its likelihood is (the "local variables" of Hoffman, Blei, Wang and Paisley
            2013, "Stochastic variational inference", JMLR 14).

    Returns:
        A dataclass field. A value given at construction (`MyModel(tau=3.0)`) fixes the
        latent; its prior density then still counts, as that of an observed value.

    Raises:
        ValueError: If an argument is not of the form above.
    """
    if not isinstance(prior, Distribution) and not callable(prior):
        raise ValueError(
            "`prior` must be a numpyro distribution or a function of the model that returns "
            f"one; got {prior!r}."
        )
    if shape is not None and not callable(shape):
        given = shape if isinstance(shape, tuple | list) else (shape,)
        shape = tuple(map(whole("shape", least=0), given))
    names = as_dims(dims, "a latent")
    begin = _as_start(start)
    flags = flag("noncentered")(noncentered), flag("local")(local)
    spec = Latent(prior, shape, names, flags[0], begin, flags[1])
    return eqx.field(
        default=UNDRAWN, converter=_as_value, kw_only=True, metadata={"latent": spec}
    )


def _as_start(start: Any) -> Any:
    """Return where a latent starts: None, `"prior"`, or values that are hashable."""
    if start is None or start == "prior" and isinstance(start, str):
        return start
    try:
        array = np.asarray(start, float)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if not np.isfinite(array).all():
        raise ValueError(f'`start` must be finite numbers, "prior" or None; got {start!r}.')
    return array


def latents(specs: Callable[[Any], dict[str, Latent]]) -> Any:
    """Declare a field that is a dict of latents by name, for priors known to the instance.

    Args:
        specs: A function of the model that returns what is declared, by name. The names in
            a posterior are these, without that of the field.

    Returns:
        A dataclass field; its value is a dict with the same names, each `UNDRAWN` or fixed.
    """
    return eqx.field(kw_only=True, metadata={"latents": specs})


def _as_value(value):
    if value is UNDRAWN:
        return value
    # A Python float would be static in the target: a new fixed value, a new compilation.
    return jnp.asarray(value, dtype=jnp.result_type(float))


class _Derived(property):
    """A property whose value is reported with the draws."""

    dims: tuple[str, ...] = ()


@overload
def derived(function: Callable[[Any], Any], /) -> property: ...
@overload
def derived(*, dims: str | tuple[str, ...] = ()) -> Callable[[Callable], property]: ...
def derived(function: Any = None, /, *, dims: str | tuple[str, ...] = ()) -> Any:
    """Make a method of a `Model` a property whose value is reported with the draws.

    Use it as `@wh.derived`, or with names for the axes as `@wh.derived(dims="school")`.

    Args:
        function: A method without arguments.
        dims: A name for each axis of the value.

    Returns:
        A property; without `function`, a decorator.
    """
    if function is None:
        return lambda f: derived_property(f, dims)
    if not callable(function):
        raise ValueError(f"`function` must be a method without arguments; got {function!r}.")
    return derived_property(function, dims)


def derived_property(function: Callable[[Any], Any], dims: Any) -> "_Derived":
    """Return the property that `derived` makes."""
    made = _Derived(function, doc=function.__doc__)
    made.dims = as_dims(dims, "a derived value")
    return made


def is_derived(value: Any) -> bool:
    """Whether a class attribute was made by `derived`."""
    return isinstance(value, _Derived)


def _as_labels(name: str, values: Any) -> np.ndarray:
    """Return labels as an array that a file can hold."""
    if isinstance(values, int | np.integer) and not isinstance(values, bool):
        return np.arange(whole(f"coords[{name!r}]", least=0)(values))
    try:
        array = np.asarray(values)
        if array.dtype == object and all(hasattr(x, "isoformat") for x in array.flat):
            array = array.astype("datetime64[us]")
        missing = array != array  # NaN, NaT
    except ValueError:
        array = missing = np.asarray([[None]])
    levels = getattr(values, "nlevels", 1) > 1
    if array.ndim != 1 or levels:
        got = "labels of several levels" if levels else f"an array of shape {array.shape}"
        raise ValueError(
            f"`coords[{name!r}]` must be a flat sequence of labels; got {got}. Join labels of "
            "several levels, as `[' '.join(map(str, label)) for label in labels]`."
        )
    odd = [x for x in array if not isinstance(x, str)] if array.dtype == object else []
    if odd or array.dtype.kind not in "biufUMmO" or np.any(missing):
        shown = odd[0] if odd else array[np.argmax(missing)]
        raise ValueError(
            f"`coords[{name!r}]` must be text, numbers or dates, none missing; got {shown!r}. "
            "`[str(label) for label in labels]` makes text of others."
        )
    # Texts of NumPy lose null characters at their ends.
    text = "".join(map(str, np.asarray(values, object))) if array.dtype.kind in "UO" else ""
    if "\0" in text or not is_text(text):
        raise ValueError(
            f"`coords[{name!r}]` must be text that UTF-8 can hold, without null characters, "
            "which files cannot."
        )
    return array


class Coords(Mapping):
    """Labels along named axes, hashable.

    Two are equal if they name the same axes with the same lengths: only these reach
    compiled code, so that new labels do not mean a new compilation.
    """

    def __init__(self, labels: Mapping[str, Any] | None = None):
        """Check and keep the labels.

        Args:
            labels: For each axis, a sequence of distinct labels, or an integer length.

        Raises:
            ValueError: If labels are not a flat sequence, or repeat.
        """
        self._labels: dict[str, np.ndarray] = {}
        labels = {} if labels is None else labels
        if not isinstance(labels, Mapping):
            raise ValueError(f"`coords` must be a dict of labels by axis; got {labels!r}.")
        for name, values in labels.items():
            as_dims(name, "`coords`")
            plain = isinstance(values, int | np.integer)
            values = _as_labels(name, values)
            if plain:  # a length: there may be a million rows
                self._labels[name] = values
                continue
            unique, counts = np.unique(values.astype(str), return_counts=True)
            if len(unique) != len(values):
                raise ValueError(
                    f"`coords[{name!r}]` must not repeat a label; got "
                    f"{str(unique[counts > 1][0])!r} {counts.max()} times."
                )
            self._labels[name] = values

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """Axis names with their lengths, sorted."""
        return tuple(sorted((name, len(v)) for name, v in self._labels.items()))

    def __getitem__(self, name):
        return self._labels[name]

    def __iter__(self):
        return iter(self._labels)

    def __len__(self):
        return len(self._labels)

    def __eq__(self, other):
        return isinstance(other, Coords) and self.sizes == other.sizes

    def __hash__(self):
        return hash(self.sizes)

    def __repr__(self):
        return "Coords(" + ", ".join(f"{n}: {k}" for n, k in self.sizes) + ")"
