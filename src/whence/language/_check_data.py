"""Checks of data against a likelihood that need no compilation."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path, tree_map_with_path
from numpyro.distributions import MaskedDistribution

from ..core._dtype import warn_of_counts
from ..core._numbers import as_array, is_numbers
from ..core._results import InferenceWarning
from ..core._slopes import computes_with, used, warn_of_slopes
from ._frames import OBSERVED, plain_path
from ._model import Model, constrain, constrain_with_terms


def check_data(value: Any, argument: str, what: str | None = None) -> Any:
    """Return `value` with array leaves on the device; refuse what cannot be data.

    Args:
        value: An array-like, or a pytree of them (pandas and xarray objects included).
        argument: Its name for messages.
        what: Name of the variable, for messages about observed data.

    Raises:
        ValueError: On NaN, non-numeric values, empty observed data, or numbers that do not
            fit the present precision.
    """
    observed = what is not None
    if observed and value is None:
        raise ValueError(
            f"`{argument}` must be the observed data; got None. Draws from the prior alone are "
            "made by `model.sample_prior(key)`."
        )

    def convert(path, leaf):
        where = f"`{argument}`" + (
            f" at {keystr(path, simple=True, separator='.')!r}" if path else ""
        )
        if isinstance(leaf, Tracer | str | bytes) or callable(leaf):
            if isinstance(leaf, str | bytes) and observed:
                raise ValueError(f"{where} must be numbers; got text ({leaf!r}).")
            return leaf
        if not observed and isinstance(leaf, bool | int | float):
            return leaf  # an option of the model, not data
        leaf = as_array(leaf, where)
        if observed and leaf.size == 0:
            raise ValueError(f"{where} must not be empty; got shape {leaf.shape}.")
        return leaf.astype(jnp.int32) if observed and leaf.dtype == bool else leaf

    return tree_map_with_path(convert, value, is_leaf=is_numbers)


def check_likelihood(target: Any) -> int | None:
    """Check that likelihood and data have agreeing shapes and supports.

    Args:
        target: A `ModelTarget`.

    Returns:
        Number of data rows if every log likelihood has one entry per row, else None.

    Raises:
        ValueError: Naming the observed variable, the rule and the shapes or values got.
    """

    counts: dict[str, None] = {}
    leaves, structure = jax.tree.flatten(target.y)
    at = [i for i, leaf in enumerate(leaves) if eqx.is_array(leaf)]
    entries, form = tree_flatten_with_path(target.inputs)
    coded = {place.path for place in target.places}
    codes = [i for i, (path, _) in enumerate(entries) if plain_path(path) in coded]

    def visit(arrays, groups, position):
        draw, _ = constrain(target.model, position)
        if type(draw).log_likelihood is Model.log_likelihood:
            likelihood = likelihood_of(draw, target)
            _check_names(target, likelihood)
            draw.check_observed(target.y, likelihood)
            named = likelihood if isinstance(likelihood, Mapping) else {target.name: likelihood}
            for name, d in named.items():
                _check_shapes(target, name, d)
                _check_words(target, name, d)
                _check_support(target, name, d)
                if d.support.is_discrete and not isinstance(target.observed_data[name], Tracer):
                    counts[name] = None
        y = structure.unflatten(_with(leaves, at, arrays))
        inputs = form.unflatten(_with([leaf for _, leaf in entries], codes, groups))
        value = draw.log_likelihood(y, *inputs)
        _check_log_likelihood(target, value)
        return value

    name, position = type(target.model).__name__, _free_shapes(target)
    own = type(target.model).log_likelihood.__module__ or ""  # None where `exec` made it
    trace = jax.make_jaxpr(visit, return_shape=True)
    try:
        data = [leaves[i] for i in at], [entries[i][1] for i in codes]
        closed, found = trace(*data, position)
    except jax.errors.JAXTypeError:  # it looks at numbers of them, which is to read them
        at, codes = [], []
        closed, found = trace([], [], position)
    if at and not own.startswith("whence.") and not any(used(closed.jaxpr)[: len(at)]):
        warnings.warn(
            f"`log_likelihood` of {name} does not depend on `y`: the posterior is the same for "
            "all data. See that it reads its argument.",
            InferenceWarning,
            stacklevel=4,
        )
    for i, code in enumerate(codes):
        given = [j == len(at) + i for j in range(len(closed.jaxpr.invars))]
        if computes_with(closed.jaxpr, given):
            axis = next(p.axis for p in target.places if p.path == plain_path(entries[code][0]))
            warnings.warn(
                f"Categories of {axis!r} were made 0, 1, 2, ... and the likelihood of {name} "
                "computes with these numbers, as if one were twice another. Take an entry for "
                f"each (`effect[{axis}]`), or give numbers.",
                InferenceWarning,
                stacklevel=4,
            )
    for count in counts:
        warn_of_counts(target.observed_data[count], count, stacklevel=4)
    warn_of_slopes(closed, position, name, stacklevel=4)
    shapes = [leaf.shape for leaf in jax.tree.leaves(found)]
    lengths = {shape[0] if shape else None for shape in shapes}
    return lengths.pop() if len(lengths) == 1 else None


def _with(leaves: list, at: list[int], others: list) -> list:
    """Return leaves with others in some places."""
    places = dict(zip(at, others))
    return [places.get(i, leaf) for i, leaf in enumerate(leaves)]


def refuse_shared_names(own: set[str], y: Any, name: str) -> None:
    """Raise if data have the name of a latent or derived value."""
    clash = own & (set(y) if isinstance(y, Mapping) else {name})
    if clash:
        raise ValueError(
            "Observed variables must not share a name with latents or derived values; got "
            f"{sorted(clash)[0]!r}. Rename one; `name=` of `condition` is that of a single `y`."
        )


def _check_log_likelihood(target, value) -> None:
    """Refuse what is no log density of the data: a forgotten `return`, a mask, a matrix."""
    where = f"`log_likelihood` of {type(target.model).__name__}"
    named = value if isinstance(value, Mapping) else {"": value}
    if not named or any(leaf is None for leaf in named.values()):
        raise ValueError(
            f"{where} must return the log likelihood of the data; got {value!r}. Is a `return` "
            "missing?"
        )
    for name, leaf in named.items():
        if not isinstance(leaf, float | np.ndarray | np.generic | jax.Array):
            hint = " Write `.log_prob(y)`." if hasattr(leaf, "log_prob") else ""
            raise ValueError(
                f"{where} must return an array, or a dict of arrays; got "
                f"{type(leaf).__name__}.{hint}"
            )
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"{where} must return real numbers, in nats; got {jnp.result_type(leaf)}."
            )
        y: Any = target.y.get(name) if isinstance(target.y, Mapping) else target.y
        if eqx.is_array(y) and y.size > 1 and _counts_again(y.shape, jnp.shape(leaf)):
            raise ValueError(
                f"{where} must have one number per datum; got shape {jnp.shape(leaf)} for data "
                f"of shape {y.shape}, which counts each datum many times. Reshape what was "
                "broadcast, or sum over the further axes."
            )


def _counts_again(data: tuple[int, ...], terms: tuple[int, ...]) -> bool:
    """Whether terms have the shape of data broadcast to more numbers."""
    if math.prod(terms) <= math.prod(data):
        return False
    try:
        return np.broadcast_shapes(data, terms) == terms
    except ValueError:
        return False


def fixed_by_others(target: Any) -> tuple[str, ...]:
    """Return the fixed latents whose prior depends on a latent that is not fixed.

    Args:
        target: A `ModelTarget`.
    """
    fixed = [site.name for site in target.sites if site.fixed]
    if not fixed or not target.free:
        return ()
    position = _free_shapes(target)
    terms = lambda position: constrain_with_terms(target.model, position)[1]

    def depends(name: str) -> bool:
        return any(used(jax.make_jaxpr(lambda p: terms(p)[name])(position).jaxpr))

    return tuple(name for name in fixed if depends(name))


def _free_shapes(target: Any) -> dict[str, jax.ShapeDtypeStruct]:
    dtype = jnp.result_type(float)
    return {s.name: jax.ShapeDtypeStruct(s.unconstrained_shape, dtype) for s in target.free}


def likelihood_of(draw: Any, target: Any) -> Any:
    """Return the likelihood at a target's inputs; refuse those that it fails on."""
    try:
        return draw.likelihood(*target.inputs)
    except KeyError as error:
        columns = [", ".join(map(repr, v)) for v in target.inputs if isinstance(v, dict)]
        if not columns:
            raise
        raise ValueError(
            f"`likelihood` of {type(target.model).__name__} found no {error} among its inputs; "
            f"the columns of a table are {' and '.join(columns)}."
        ) from error
    except (TypeError, ValueError, IndexError) as error:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(target.inputs)]
        raise ValueError(
            f"`likelihood` of {type(target.model).__name__} failed on inputs of shapes "
            f"{shapes}: {error}"
            + ". A table is a dict of its columns: pass `table.to_numpy()` to have a matrix."
            * any(isinstance(value, dict) for value in target.inputs)
        ) from error


def _check_names(target, likelihood):
    named = isinstance(likelihood, Mapping)
    if named != isinstance(target.y, Mapping) or (named and set(likelihood) != set(target.y)):
        got = sorted(target.y) if isinstance(target.y, Mapping) else "a single array"
        want = sorted(likelihood) if named else "a single array"
        raise ValueError(
            f"`y` must have what `likelihood` of {type(target.model).__name__} describes "
            f"({want}); got {got}."
        )


def _check_words(target, name, d):
    """Refuse text and categories where the likelihood is of numbers along a line."""
    if any(p.path == (OBSERVED, name) for p in target.places) and not d.support.is_discrete:
        raise ValueError(
            f"`y` ({name!r}) must be numbers, since its likelihood {type(d).__name__} is "
            "continuous; got text or categories."
        )


def _check_shapes(target, name, d):
    if not hasattr(d, "log_prob") or isinstance(d, type):
        raise ValueError(
            f"`likelihood` of {type(target.model).__name__} must return a numpyro "
            f"distribution for {name!r}; got {d!r}."
        )
    got, want = jnp.shape(target.observed_data[name]), tuple(d.shape())
    try:
        joint = jnp.broadcast_shapes(got, want)
    except ValueError:
        joint = None
    if joint != got:
        hint = ""
        if joint is not None:
            hint = (
                f" Together they would broadcast to {joint} and count each datum many times; "
                "reshape one of them."
            )
        raise ValueError(
            f"Observed variable {name!r} has shape {got}, but its likelihood "
            f"{type(d).__name__} has shape {want}.{hint}"
        )


def _check_support(target, name, d):
    value = target.observed_data[name]
    masked = isinstance(d, MaskedDistribution)
    if isinstance(value, Tracer) or (masked and isinstance(d._mask, Tracer)):
        return
    try:
        with jax.ensure_compile_time_eval():
            inside = np.asarray(d.support(np.asarray(value)))
            if masked:
                inside = inside | ~np.broadcast_to(d._mask, inside.shape)
    except Exception:  # noqa: BLE001 - the support depends on latents: seen at the start
        return
    # Whether NaN is hidden by a mask is looked at elsewhere.
    missing = np.isnan(np.asarray(value, float))
    extra = missing.ndim - inside.ndim
    inside = inside | (missing.any(axis=tuple(range(-extra, 0))) if extra > 0 else missing)
    if not inside.all():
        row = tuple(int(i) for i in np.argwhere(~np.atleast_1d(inside))[0])
        shown = np.atleast_1d(np.asarray(value))[row[: np.atleast_1d(value).ndim]]
        raise ValueError(
            f"Observed variable {name!r} must lie in the support of its likelihood "
            f"{type(d).__name__} ({d.support!r}); got {shown} at index {row} and "
            f"{int((~inside).sum()) - 1} more outside."
        )
