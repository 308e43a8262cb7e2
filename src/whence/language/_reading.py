"""What `condition` and `predict` make of columns: names, labels of axes, categories."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import tree_leaves_with_path, tree_map_with_path

from ..core._numbers import contents, is_numbers
from ._frames import (
    OBSERVED,
    Column,
    Place,
    as_labels,
    as_objects,
    axis_of,
    by_column,
    categorical,
    check_aligned,
    column_name,
    describe,
    encode,
    is_count,
    is_table,
    key,
    occurring,
    plain_path,
    row_labels,
    unknown,
)
from ._latent import Coords, as_dims
from ._local import row_axes
from ._model import all_coords, derived_dims, derived_names, models_inside


class Given(NamedTuple):
    """A model and its data, columns read.

    Attributes:
        model: The model, with labels of axes that the data name.
        y: Observed data, without categories.
        inputs: Inputs; tables are dicts of columns.
        name: Name of a single observed variable.
        dims: Names of the axes of observed variables.
        labels: Labels of axes that are not the model's.
        places: Where categories are among inputs and observed data.
    """

    model: Any
    y: Any
    inputs: tuple
    name: str
    dims: dict[str, Any]
    labels: Coords
    places: tuple[Place, ...]


def read(
    model: Any,
    y: Any,
    inputs: tuple,
    parameters: Sequence[str],
    name: str | None,
    dims: Any,
    allow_missing: bool,
) -> Given:
    """Return what `condition` was given with columns read; numbers are left as they are.

    Args:
        model: The model.
        y: Observed data.
        inputs: Inputs of the likelihood.
        parameters: Their names.
        name: Name of a single observed variable; None for that of its column, or "y".
        dims: As the user gave them.
        allow_missing: Give missing categories of inputs the number -1.

    Raises:
        ValueError: If labels do not fit each other, or a category is missing.
    """
    inputs = _split(model, inputs)
    if name is None:
        taken = {f.name for f in dataclasses.fields(model)} | {"chain", "draw", *parameters}
        name = column_name(y) or "y"
        name = "y" if name in taken | set(derived_names(model)) else name
    observed = dict(y) if isinstance(y, Mapping) else {name: y}
    axes, known, labels = model_axes(model), all_coords(model), {}
    dims = dict(dims) if isinstance(dims, Mapping) else ({name: dims} if dims else {})
    for variable, value in observed.items():
        dims |= _rows(variable, value, dims.get(variable), axes, known, labels)
    found = _columns(inputs, parameters, axes)
    for axis, columns in found.items():
        labels[axis] = _labels(axis, columns, (labels if axis in labels else known).get(axis))
    _check_aligned(y, inputs, parameters, known | labels)
    fitting = {axis: labels[axis] for axis in found}
    paths = {path: axis for axis, columns in found.items() for path, _ in columns}

    def convert(path, leaf):
        path = plain_path(path)
        column = categorical(leaf) if path in paths else None
        if column is None:
            return leaf
        where, axis = describe(path, parameters), paths[path]
        return encode(
            column.values, fitting[axis], where, f"axis {axis!r}", allow_missing=allow_missing
        )

    inputs = tree_map_with_path(convert, inputs)
    words = [n for n, v in observed.items() if categorical(v) is not None]
    observed = {
        n: _observed(n, v, axes, known, labels, allow_missing) for n, v in observed.items()
    }
    y = observed if isinstance(y, Mapping) else observed[name]
    own = {axis: v for axis, v in labels.items() if axis in axes}
    rest = {axis: v for axis, v in labels.items() if axis not in axes}
    coded = {**paths, **{(OBSERVED, n): n for n in words}}
    places = tuple(Place(path, axis) for path, axis in coded.items())
    model = with_coords(model, own) if own else model
    return Given(model, y, inputs, name, dims, Coords(rest), places)


def _check_aligned(y, inputs, parameters, labels) -> None:
    leaves = tree_leaves_with_path(inputs)
    named = [(describe(plain_path(path), parameters), leaf) for path, leaf in leaves]
    check_aligned(y, named, labels)


def _split(model, inputs) -> tuple:
    return by_column(tuple(inputs)) if model.__whence_columns__ else tuple(inputs)


def model_axes(model: Any) -> dict[str, None]:
    """Return the names of the axes of a model: of its coords, latents and derived values."""
    found = dict.fromkeys(all_coords(model))
    for _, inner in models_inside(model):
        for field in dataclasses.fields(inner):
            if "latent" in field.metadata:
                found |= dict.fromkeys(field.metadata["latent"].dims)
    for dims in derived_dims(model).values():
        found |= dict.fromkeys(dims)
    return found


def with_coords(model: Any, labels: Mapping[str, Any]) -> Any:
    """Return a model with labels along axes, in models inside it too where they name them."""
    new = jax.tree.map(lambda x: x, model)
    for path, inner in models_inside(new):
        own = labels if not path else {a: v for a, v in labels.items() if a in inner.coords}
        object.__setattr__(inner, "coords", Coords({**inner.coords, **own}))
    return new


def _rows(variable, value, dims, axes, known, labels) -> dict[str, tuple[str, ...]]:
    """Return names of the axes of a variable, and put what labels it has into `labels`."""
    found = row_labels(value)
    given = as_dims(dims, f"`y` ({variable})") if dims else ()
    names: list[str | None] = list(given) or [
        name or (None if labels_ is None else f"{variable}_dim_{i}")
        for i, (name, labels_) in enumerate(found)
    ]
    for i, (_, new) in enumerate(found[: len(names)]):
        axis = names[i]
        old = labels.get(axis, known.get(axis)) if axis else None
        if axis is None or new is None:
            continue
        if old is None or is_count(old, new):
            labels[axis] = new
        elif len(old) == len(new):
            _require_same(axis, old, new, variable)
        elif not given:
            names[i] = None  # the labels of another axis, of which these rows are a part
    if given or not any(names):
        return {variable: given} if given else {}
    names += [None] * (np.ndim(value) - len(names))
    return {variable: tuple(n or f"{variable}_dim_{i}" for i, n in enumerate(names))}


def _require_same(axis, old, new, variable) -> None:
    differs = [i for i, (a, b) in enumerate(zip(old, new)) if key(a) != key(b)]
    if differs:
        i = differs[0]
        raise ValueError(
            f"Rows of `{variable}` must be in the order of `coords[{axis!r}]`; got "
            f"{str(new[i])!r} in row {i}, where `coords` has {str(old[i])!r}. Sort them, as "
            "`y.loc[labels]` does."
        )


def _columns(inputs, parameters, axes) -> dict[str, list[tuple[tuple, Column]]]:
    """Return path and content of the categories among inputs, by the axis that they index."""
    found: dict[str, list[tuple[tuple, Column]]] = {}

    def visit(path, leaf):
        path, column = plain_path(path), categorical(leaf)
        if column is not None:
            axis = axis_of(path, column, parameters, axes)
            found.setdefault(axis, []).append((path, column))

    tree_map_with_path(visit, inputs)
    return found


def _labels(axis, columns, old) -> np.ndarray:
    """Return the labels of an axis: those of the model, of a column, or all that occur."""
    declared = [as_labels(c.labels) for _, c in columns if c.labels is not None]
    made = declared[0] if declared else as_labels(occurring([c.values for _, c in columns]))
    if old is not None and not is_count(old, made):
        return old
    for other in declared[1:]:
        if [key(a) for a in other] != [key(a) for a in made]:
            raise ValueError(
                f"Columns that index axis {axis!r} must have the same labels in one order; got "
                f"{len(made)} and {len(other)} that differ. Give them to both: "
                f"`whence.categories(x, labels, name={axis!r})`."
            )
    return made


def _observed(variable, value, axes, known, labels, allow_missing):
    column = categorical(value)
    if column is None:
        return value
    axis = next((n for n in (column.name, variable) if n in axes), None)
    made = _labels(axis, [((variable,), column)], labels.get(axis, known.get(axis)))
    if axis is not None:
        labels[axis] = made
    where = f"`y` ({variable})"
    return encode(column.values, made, where, f"axis {axis!r}", allow_missing=allow_missing)


def reread(
    model: Any,
    inputs: tuple,
    parameters: Sequence[str],
    places: Sequence[Place],
    coords: Mapping[str, np.ndarray],
    grow: bool,
    fitted: tuple,
) -> tuple[tuple, dict[str, list[Any]]]:
    """Return new inputs with the same numbers for the same labels, and new labels by axis.

    Args:
        model: The model.
        inputs: As the user gave them.
        parameters: Their names.
        places: Where categories were in the inputs of the fit.
        coords: Labels along axes.
        grow: Give labels that are not known numbers after those of the others.
        fitted: Inputs of the fit; columns that their tables have not are left out.

    Raises:
        ValueError: Naming an unknown category, or the row of a missing one.
    """
    inputs, axes = _split(model, _columns_of(fitted, inputs)), model_axes(model)
    known = {place.path: place.axis for place in places}
    more: dict[str, list[Any]] = {}

    def visit(change: Callable[[str, tuple, Any], Any]):
        def at(path, leaf):
            path = plain_path(path)
            column = _column_at(leaf, coords.get(known.get(path, "")))
            if isinstance(column, Column):
                axis = known.get(path) or axis_of(path, column, parameters, axes)
                return change(axis, path, column) if axis in coords else leaf
            if column is None or not grow:
                return leaf
            named = Column(np.empty(0), None, column_name(leaf))
            axis = known.get(path) or axis_of(path, named, parameters, axes)
            return change(axis, path, column) if axis in axes and axis in coords else leaf

        is_column = lambda v: v is not inputs and (_is_text(v) or is_numbers(v))
        return tree_map_with_path(at, inputs, is_leaf=is_column)

    def collect(axis, path, column):
        if isinstance(column, Column):
            new = unknown(
                column.values, np.asarray([*coords[axis], *more.get(axis, [])], object)
            )
        else:
            new = [int(i) for i in np.unique(column[column >= len(coords[axis])])]
            new = [i for i in new if i not in more.get(axis, [])]
        if new:
            more.setdefault(axis, []).extend(new)

    def convert(axis, path, column):
        where = describe(path, parameters)
        if isinstance(column, Column):
            labels = np.asarray([*coords[axis], *more.get(axis, [])], object)
            hint = ' `new_groups="prior"` of `predict` draws the effects of new ones.'
            return encode(column.values, labels, where, f"axis {axis!r}", hint=hint)
        beyond = column >= len(coords[axis])
        numbers = {label: len(coords[axis]) + i for i, label in enumerate(more.get(axis, []))}
        return np.array([numbers[int(i)] if b else i for i, b in zip(column, beyond)], np.int32)

    if grow:
        visit(collect)
    own = axes.keys() & coords.keys() - set(row_axes(model))
    labels = {a: np.asarray([*coords[a], *more[a]]) if a in more else coords[a] for a in own}
    _check_aligned((), inputs, parameters, labels)
    return visit(convert), more


def _columns_of(fitted: tuple, inputs: tuple) -> tuple:
    """Return inputs; of tables the columns that the fit had, as only their text is known."""

    def pick(value, old):
        if not (is_table(value) and isinstance(old, dict)):
            return value
        return {n: column for n, column in by_column(value).items() if n in old}

    return tuple(pick(v, fitted[i] if i < len(fitted) else None) for i, v in enumerate(inputs))


def _is_text(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(v, str) for v in value)
    )


def _column_at(leaf: Any, labels: np.ndarray | None) -> Column | np.ndarray | None:
    """Return a column of labels, or numbers of groups; None for what is neither.

    Args:
        leaf: A new input.
        labels: Labels of the axis it indexes, if it was a column of categories in the fit.
    """
    column = categorical(leaf)
    if column is not None:
        return column
    if labels is not None and (isinstance(leaf, str) or _is_text(leaf)):
        return Column(np.asarray(leaf, object), None, None)
    if isinstance(leaf, str) or not (hasattr(leaf, "dtype") or isinstance(leaf, list)):
        return None
    array = np.asarray(contents(leaf) if hasattr(leaf, "to_numpy") else leaf)
    if labels is not None and labels.dtype.kind in "iufmM":
        return Column(as_objects(array), None, column_name(leaf))
    return array if array.dtype.kind in "iu" and array.ndim == 1 else None


def check_dims(
    dims: Mapping[str, Any], observed: Mapping[str, Any], coords: Mapping[str, Any]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the names of the axes of observed variables, checked against shapes.

    Args:
        dims: Names of the axes, by variable.
        observed: Observed data, by variable.
        coords: Labels of axes.

    Raises:
        ValueError: If a variable is not observed, or names or labels do not fit a shape.
    """
    found = {}
    for variable, names in dims.items():
        if variable not in observed:
            raise ValueError(
                f"`dims` must name observed variables ({', '.join(observed)}); got "
                f"{variable!r}."
            )
        found[variable] = as_dims(names, f"`y` ({variable})")
        shape = np.shape(observed[variable])
        if len(shape) != len(found[variable]):
            raise ValueError(
                f"`dims` of {variable!r} must name each of its {len(shape)} axes; got "
                f"{found[variable]}."
            )
        for axis, length in zip(found[variable], shape):
            if axis in coords and len(coords[axis]) != length:
                raise ValueError(
                    f"Axis {axis!r} of {variable!r} has {length} entries, but `coords` has "
                    f"{len(coords[axis])} labels for it."
                )
    return tuple(found.items())
