"""Arrays to an `xarray.DataTree` with the groups, dims and coords that ArviZ expects."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray

SAMPLE_DIMS = ("chain", "draw")
_WITHOUT_SAMPLES = ("observed_data", "constant_data", "predictions_constant_data", "record")
GROUPS = (
    *("posterior", "unconstrained_posterior", "sample_stats", "log_likelihood", "log_prior"),
    *("posterior_predictive", "predictions", "prior", "prior_predictive", "observed_data"),
    *("constant_data", "predictions_constant_data", "warmup_posterior", "warmup_sample_stats"),
    "record",
)


def to_datatree(
    groups: Mapping[str, Mapping[str, np.ndarray] | None],
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    *,
    log_weights: np.ndarray | None = None,
) -> "xarray.DataTree":
    """Lay arrays out as ArviZ's functions expect them.

    Args:
        groups: Variables by group and name; empty groups and None are left out. Arrays
            have leading axes `(chain, draw)`, except in `observed_data` and
            `constant_data`. Known groups are in `GROUPS`.
        dims: Names of a variable's axes, by variable, without chain and draw; used in all
            groups, so that observed, predicted and pointwise values share them. Axes
            without a name are called `{variable}_dim_{i}`; a trailing axis that only
            some groups have (the event of a multivariate likelihood) may be left out.
        coords: Labels along named axes.
        attrs: Attributes of the root, for example the manifest: strings, numbers, or what
            JSON can hold.
        log_weights: Log weights of draws in nats, `(chain, draw)`: stored as `log_weight`
            in `sample_stats`. ArviZ knows no weights: resample the draws first where its
            statistics matter.

    Raises:
        ValueError: If a group is unknown, or shapes, dims and coords disagree.
    """
    import xarray

    dims, coords = dict(dims or {}), dict(coords or {})
    groups = {name: dict(variables or {}) for name, variables in groups.items()}
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ValueError(
            f"`groups` has unknown group {unknown[0]!r}; known are: {', '.join(GROUPS)}."
        )
    if log_weights is not None:
        groups.setdefault("sample_stats", {})["log_weight"] = np.asarray(log_weights)
    datasets = {
        f"/{group}": _dataset(group, groups[group], dims, coords)
        for group in GROUPS
        if groups.get(group)
    }
    datasets["/"] = xarray.Dataset(attrs=dict(attrs or {}))
    return xarray.DataTree.from_dict(datasets)


def in_order(tree: "xarray.DataTree") -> "xarray.DataTree":
    """Return groups in which each variable has its axes in the order of its group.

    ArviZ puts numbers under wrong labels elsewhere. The order is that in which axes appear:
    variables are moved where that helps, else axes are.
    """
    import xarray

    for group in tree.children:
        dataset = tree[group].to_dataset()
        names, order = _sequence({str(n): v.dims for n, v in dataset.data_vars.items()})
        if names is not None:
            tree[group] = xarray.DataTree(dataset[names].transpose(*order, ...))
    return tree


def in_file_order(dataset: "xarray.Dataset") -> "xarray.Dataset":
    """Return a group that stays in order in a file, of which some readers sort the variables.

    Where that takes it, variables are sorted by name as zarr does, and axes are moved.
    """
    axes = {str(n): v.dims for n, v in dataset.data_vars.items()}
    names = sorted(axes, key=lambda n: unicodedata.normalize("NFKC", n).casefold())
    order = _appearing(axes[name] for name in names)
    if _agree(axes, _appearing(axes.values())) and _agree(axes, order):
        return dataset
    return dataset[names].transpose(*order, ...)


def _appearing(axes: Iterable[tuple[Any, ...]]) -> list[Any]:
    return list(dict.fromkeys(axis for own in axes for axis in own))


def _sequence(axes: dict[str, tuple[Any, ...]]) -> tuple[list[str] | None, list[Any]]:
    """Return variables and axes in order; None if the variables are in order already."""
    order = _appearing(axes.values())
    if _agree(axes, order):
        return None, order
    left, names, order = dict(axes), [], []
    extended = lambda name: list(dict.fromkeys((*order, *left[name])))
    while left:
        fitting = (name for name in left if _agree(left, extended(name)))
        names.append(next(fitting, next(iter(left))))
        order = extended(names[-1])
        del left[names[-1]]
    return names, order


def _agree(axes: Mapping[str, tuple[Any, ...]], order: Sequence[Any]) -> bool:
    """Whether each variable has the axes that are in order first, and in that order."""
    rank = {axis: i for i, axis in enumerate(order)}
    places = [[rank.get(axis, len(order)) for axis in own] for own in axes.values()]
    return all(own == sorted(own) for own in places)


def _dataset(group: str, variables, dims, coords) -> "xarray.Dataset":
    import xarray

    leading = () if group in _WITHOUT_SAMPLES else SAMPLE_DIMS
    data, lengths = {}, {}
    for name, value in variables.items():
        value = np.asarray(value)
        named = dims.get(name, ())
        if group == "unconstrained_posterior":
            named = _unconstrained_dims(name, named, value.shape[2:], coords)
        axes = _axes(group, name, value, leading, named)
        data[name] = (axes, value)
        for axis, length in zip(axes, value.shape, strict=True):
            if lengths.setdefault(axis, length) != length:
                raise ValueError(
                    f"`groups[{group!r}][{name!r}]` has length {length} along {axis!r}, where "
                    f"another variable of the group has {lengths[axis]}."
                )
    labels = {
        axis: _labels(group, axis, length, coords.get(axis)) for axis, length in lengths.items()
    }
    attrs = {"sample_dims": list(leading)} if leading else {}
    return xarray.Dataset(data, coords=labels, attrs=attrs)


def _unconstrained_dims(name: str, named, shape, coords) -> tuple[str, ...]:
    """Return the names of the axes that a bijection left alone.

    A simplex of K entries has K - 1 free ones: that axis is no longer the named one.
    """
    if len(named) != len(shape):
        return ()
    return tuple(
        axis if axis in coords and len(coords[axis]) == length else f"{name}_dim_{i}"
        for i, (axis, length) in enumerate(zip(named, shape, strict=True))
    )


def _axes(group: str, name: str, value: np.ndarray, leading, named) -> tuple[str, ...]:
    if value.ndim < len(leading):
        raise ValueError(
            f"`groups[{group!r}][{name!r}]` must have leading axes (chain, draw); got shape "
            f"{value.shape}."
        )
    rest = value.ndim - len(leading)
    named = tuple(named)
    if len(named) < rest:
        named += tuple(f"{name}_dim_{i}" for i in range(len(named), rest))
    elif len(named) > rest and not group.startswith("log_"):
        raise ValueError(
            f"`dims[{name!r}]` names {len(named)} axes {named}, but "
            f"`groups[{group!r}][{name!r}]` has {rest} besides {leading}: {value.shape}."
        )
    axes = (*leading, *named[:rest])
    if len(set(axes)) < len(axes):
        raise ValueError(f"`dims[{name!r}]` must be distinct; got {axes}.")
    return axes


def _labels(group: str, axis: str, length: int, labels) -> np.ndarray:
    if labels is None or axis in SAMPLE_DIMS:
        return np.arange(length)
    labels = _as_labels(labels)
    if len(labels) == length:
        return labels
    # Predictions at new inputs may well have another number of rows.
    if "predict" in group:
        return np.arange(length)
    raise ValueError(
        f"`coords[{axis!r}]` has {len(labels)} labels, but that axis has length {length} in "
        f"group {group!r}."
    )


def _as_labels(labels) -> np.ndarray:
    """Make an array of labels that an index, and a file, can hold."""
    values = list(labels)
    if values and any(isinstance(value, (str, tuple, list)) for value in values):
        values = [str(value) for value in values]
    array = np.asarray(values)
    return array.astype(str) if array.dtype == object else array
