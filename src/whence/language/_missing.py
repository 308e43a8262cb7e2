"""Missing values of observed data: rows without them, or latents in their place.

Where elements of the data are independent given the draw, a missing one is a latent whose
prior is the distribution of that element: the likelihood is of the others alone. It can be
drawn from and tempered, and of location-scale distributions engines see it standardised, so
that it does not tie the other latents together. Where data are dependent (a multivariate
normal), a missing value has a flat prior of its own and the density of all data counts; in
leave-one-out cross-validation that of what is known of a row.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints

from ..core._dtype import relaxed
from ._frames import OBSERVED
from ._latent import UNDRAWN, Coords, Latent, latents
from ._local import row_axes
from ._model import Model, all_coords, look_at_draw
from ._reading import Given, with_coords
from ._sites import LOCATION_SCALE

# -- rows without missing values ---------------------------------------------------------


def in_numbers(y: Any) -> Any:
    """Return observed data in which masked values are NaN."""

    def convert(value):
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            return np.ma.filled(value.astype(float), np.nan)
        return value

    return {n: convert(v) for n, v in y.items()} if isinstance(y, Mapping) else convert(y)


def drop_missing(given: Given, y: Any, inputs: tuple) -> tuple[Model, Any, tuple, Coords]:
    """Return model, data, inputs and labels without the rows in which a value is missing.

    Args:
        given: What `condition` read.
        y: Observed data, arrays.
        inputs: Inputs, arrays where they are data.

    Raises:
        ValueError: If observed variables differ in length, or no row is left.
    """
    leaves = jax.tree.leaves(y)
    lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in leaves}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            '`missing="drop"` needs observed variables with one entry per row along a first '
            f"axis; got shapes {[jnp.shape(leaf) for leaf in leaves]}."
        )
    (number,) = lengths
    is_row = lambda leaf: eqx.is_array(leaf) and leaf.ndim > 0 and leaf.shape[0] == number
    by_row = [leaf for leaf in jax.tree.leaves((y, inputs)) if is_row(leaf)]
    named = y if isinstance(y, Mapping) else {given.name: y}
    coded = [_at({OBSERVED: named, **dict(enumerate(inputs))}, p.path) for p in given.places]
    gone = np.zeros(number, bool)
    for leaf in by_row:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            gone |= np.isnan(np.asarray(leaf)).reshape(number, -1).any(axis=1)
    for leaf in coded:
        if is_row(leaf):
            gone |= (np.asarray(leaf).reshape(number, -1) < 0).any(axis=1)
    keep = np.flatnonzero(~gone)
    if not len(keep):
        raise ValueError('`missing="drop"` leaves no row: in each one a value is missing.')
    if len(keep) == number:
        return given.model, y, inputs, given.labels
    pick = lambda leaf: leaf[keep] if is_row(leaf) else leaf
    y, inputs = jax.tree.map(pick, (y, inputs))
    y = (
        {n: _whole(given.y[n], v) for n, v in y.items()}
        if isinstance(y, Mapping)
        else _whole(given.y, y)
    )
    rows = {dims[0] for dims in given.dims.values() if dims} | row_axes(given.model)
    short = lambda known: {a: known[a][keep] for a in rows if len(known.get(a, ())) == number}
    own = short(all_coords(given.model))
    model = with_coords(given.model, own) if own else given.model
    return model, y, inputs, Coords({**given.labels, **short(given.labels)})


def _at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def _whole(column: Any, value: Array) -> Array:
    """Return values as whole numbers again if only what was missing made them others."""
    kind = str(getattr(column, "dtype", ""))
    integers = kind.lower().startswith(("int", "uint", "bool"))
    return value.astype(jnp.int32) if integers else value


# -- latents in place of missing values --------------------------------------------------


class Holes(eqx.Module):
    """What a model with imputed data knows of them.

    Attributes:
        y: Observed variables with missing values, by name.
        inputs: Inputs of the likelihood.
        where: Indices of the missing values, by variable.
        known: Indices of the others; of dependent ones, of rows that have a term in
            leave-one-out cross-validation.
        partly: Indices of rows of dependent values some of which are missing, by variable.
        axes: Name of the axis of the imputed values, by variable.
        single: Name of the variable if `y` of the model is no dict.
        standardised: Variables whose imputed values engines see standardised.
    """

    y: dict[str, Array]
    inputs: tuple
    where: dict[str, tuple[Array, ...]]
    known: dict[str, tuple[Array, ...]]
    partly: dict[str, tuple[Array, ...]]
    axes: tuple[tuple[str, str], ...] = eqx.field(static=True)
    single: str | None = eqx.field(static=True)
    standardised: tuple[str, ...] = eqx.field(static=True)

    def elements(self, draw: Model, name: str) -> dist.Distribution:
        """Return the prior of the missing values of a variable given a draw."""
        where = self.where[name]
        if name in self.partly:
            return dist.ImproperUniform(constraints.real, (len(where[0]),), ())
        d = _plain(_named(draw.likelihood(*self.inputs), self.single)[name])
        shape = self.y[name].shape
        if name in self.standardised:
            values = {n: getattr(d, n) for n in d.arg_constraints}
            return type(d)(**{n: jnp.broadcast_to(v, shape)[where] for n, v in values.items()})
        return _Elements(d, self.y[name], where)


class _Elements(dist.Distribution):
    """Some elements of data that are independent of each other."""

    pytree_data_fields = ("base", "y", "where")

    def __init__(self, base, y, where):
        self.base, self.y, self.where = base, y, where
        super().__init__((len(where[0]),), (), validate_args=False)

    @constraints.dependent_property
    def support(self):
        pick = lambda x: jnp.broadcast_to(x, self.y.shape)[self.where] if jnp.ndim(x) else x
        return jax.tree.map(pick, self.base.support)

    def log_prob(self, value):
        return self.base.log_prob(self.y.at[self.where].set(value))[self.where]

    def sample(self, key, sample_shape=()):
        drawn = self.base.expand(self.y.shape).sample(key, sample_shape)
        return drawn[(..., *self.where)]


def impute(
    model: Model, y: Any, inputs: tuple, name: str, coords: Mapping[str, Any], dims: Mapping
) -> Model:
    """Return a model of the same class whose latents are the missing values of `y`, too.

    Args:
        model: The model.
        y: Observed data, NaN where missing.
        inputs: Inputs of the likelihood.
        name: Name of the variable if `y` is a single array.
        coords: Labels of axes.
        dims: Names of the axes of observed variables.

    Raises:
        ValueError: If the likelihood is not of a kind whose data can be latents.
    """
    single = None if isinstance(y, Mapping) else name
    observed = {n: v for n, v in _named(y, single).items() if v.dtype.kind == "f"}
    holes = {n: np.nonzero(np.isnan(np.asarray(v))) for n, v in observed.items()}
    holes = {n: where for n, where in holes.items() if len(where[0])}
    if not holes:
        return model
    if row_axes(model):
        raise ValueError(
            '`missing="impute"` is not for models with local latents; use `missing="drop"`.'
        )
    kinds = _kinds(model, inputs, single, holes)
    axes = {n: f"{n}_missing_row" for n in holes}
    seen = {n: ~np.isnan(np.asarray(observed[n])) for n in holes}
    within = {n: tuple(range(-kinds[n][1], 0)) for n in holes}
    rows = {n: _RULES[kinds[n][0]](seen[n], axis=within[n]) for n in holes}
    at = lambda wanted: np.nonzero(wanted) if np.ndim(wanted) else ()
    known = {n: at(rows[n]) for n in holes}
    partly = {n: at(rows[n] & ~seen[n].all(within[n])) for n in holes if within[n]}
    labels = {}
    for n, where in holes.items():
        labels[axes[n]] = _row_names(where, coords, dims.get(n, ()))
        if known[n]:
            own = dims.get(n, ())[: len(known[n])]
            labels[known_row(n)] = _row_names(known[n], coords, own)
    model = with_coords(model, labels)
    new: Any = object.__new__(imputing(type(model)))
    for field, value in vars(model).items():
        object.__setattr__(new, field, value)
    data = Holes(
        {n: observed[n] for n in holes},
        inputs,
        _indices(holes),
        _indices(known),
        _indices(partly),
        tuple(axes.items()),
        single,
        tuple(n for n in holes if kinds[n][0] == "standardised"),
    )
    object.__setattr__(new, "whence_holes", data)
    object.__setattr__(new, "imputed", {f"{n}_missing": UNDRAWN for n in holes})
    return new


def _indices(where):
    return {n: tuple(jnp.asarray(i, jnp.int32) for i in index) for n, index in where.items()}


def known_row(name: str) -> str:
    """Return the name of the axis of the values of a variable that are not missing."""
    return f"{name}_known_row"


def known_dims(model: Model) -> dict[str, tuple[str, ...]]:
    """Return the axes of pointwise log likelihoods, by `log_likelihood/variable`."""
    holes = getattr(model, "whence_holes", None)
    rows = [n for n, index in holes.known.items() if index] if holes else []
    return {f"log_likelihood/{n}": (known_row(n),) for n in rows}


@cache
def imputing(cls: type[Model]) -> type[Model]:
    """Return a class of models like `cls` in which missing data are latents."""

    class Imputing(cls):
        whence_holes: Holes = eqx.field(kw_only=True)
        imputed: dict[str, Any] = latents(_specs)

        def log_likelihood(self, y, *inputs):
            """Return the log likelihood of `y`, zero where a value is a latent with a prior."""
            terms, holes = self._terms(cls.log_likelihood, y, inputs), self.whence_holes
            for name, where in holes.where.items():
                if name not in holes.partly:
                    terms[name] = terms[name].at[where].set(0.0)
            return terms if holes.single is None else terms[holes.single]

        def log_density_given_rest(self, y, *inputs):
            """Return the log density of each value that is not missing, or of each row's."""
            terms, holes = self._terms(cls.log_likelihood, y, inputs), self.whence_holes
            for name, known in holes.known.items():
                term = jnp.asarray(terms[name])
                if name in holes.partly:
                    law = _named(self.likelihood(*holes.inputs), holes.single)[name]
                    rows = holes.partly[name]
                    term = term.at[rows].set(_of_seen(law, holes.y[name], rows, term))
                terms[name] = term[known]
            return terms if holes.single is None else terms[holes.single]

        def _terms(self, function, y, inputs) -> dict[str, Any]:
            holes = self.whence_holes
            named = dict(_named(y, holes.single))
            for name, where in holes.where.items():
                named[name] = named[name].at[where].set(self.imputed[f"{name}_missing"])
            whole = named if holes.single is None else named[holes.single]
            return dict(_named(function(self, whole, *inputs), holes.single))

    Imputing.__name__, Imputing.__qualname__ = cls.__name__, cls.__qualname__
    return Imputing


def _specs(model: Any) -> dict[str, Latent]:
    """Declare the missing values of each variable."""
    holes = model.whence_holes
    prior = lambda name: lambda draw: draw.whence_holes.elements(draw, name)
    return {
        f"{name}_missing": Latent(
            prior(name), (len(holes.where[name][0]),), (axis,), name in holes.standardised
        )
        for name, axis in holes.axes
    }


def _named(value: Any, single: str | None) -> Mapping[str, Any]:
    return value if single is None else {single: value}


def _plain(d: Any) -> Any:
    """Return a distribution without what only shapes it or leaves data out."""
    kinds = dist.ExpandedDistribution | dist.MaskedDistribution
    while isinstance(d, kinds):
        d = d.base_dist
    return d


# Which rows of dependent values have a term: those of which anything is known, if its density
# is known in closed form, or those that are complete.
_RULES = {"parts": np.any, "joint": np.all, "elements": np.any, "standardised": np.any}


def _of_seen(law: Any, y: Array, rows: tuple[Array, ...], term: Array) -> Array:
    """Return the log density of what is known of some rows: a marginal, in closed form."""
    law = _normal(law)
    if law is None:
        return term[rows]
    loc = jnp.broadcast_to(law.loc, y.shape)[rows]
    cov = jnp.broadcast_to(law.covariance_matrix, (*y.shape, y.shape[-1]))[rows]
    seen = ~jnp.isnan(y[rows])
    # Missing values become standard normal and independent, at zero: their density is known.
    both = seen[..., :, None] & seen[..., None, :]
    cov = jnp.where(both, cov, jnp.eye(y.shape[-1], dtype=cov.dtype))
    rest = jnp.where(seen, y[rows] - loc, 0.0)
    gone = (~seen).sum(-1).astype(cov.dtype)
    whole = dist.MultivariateNormal(jnp.zeros_like(rest), cov).log_prob(rest)
    return jnp.asarray(whole) + gone * jnp.log(2 * jnp.pi) / 2


def _kinds(model, inputs, single, holes) -> dict[str, tuple[str, int]]:
    """Return of which kind each variable is, and how many axes a row has besides."""

    @relaxed()
    def look(draw):
        if type(draw).log_likelihood is not Model.log_likelihood:
            raise ValueError(
                f'`missing="impute"` needs a `likelihood` of {type(model).__name__} that says '
                'how `y` is distributed, not `log_likelihood` only. Use `missing="drop"`, or '
                "declare the missing values as latents."
            )
        laws = _named(draw.likelihood(*inputs), single).items()
        return {name: (_kind(name, d), d.event_dim) for name, d in laws if name in holes}

    return look_at_draw(model, look)


def _kind(name: str, whole: Any) -> str:
    d = _plain(whole)
    kind, support = type(d).__name__, d.support
    if support.is_discrete:
        raise ValueError(
            f"Missing values of {name!r} cannot be imputed: {kind} is discrete, and latents "
            'are continuous. Use `missing="drop"`; `posterior.predict` draws what was missing.'
        )
    if d.event_dim == 0:
        families = (*LOCATION_SCALE, dist.LogNormal)
        return "standardised" if type(d) in families else "elements"
    base = getattr(support, "base_constraint", support)
    if base is not constraints.real and support is not constraints.real_vector:
        raise ValueError(
            f"Missing values of {name!r} cannot be imputed: the values of {kind} in one row "
            f'are tied to each other ({support!r}). Use `missing="drop"`.'
        )
    return "joint" if _normal(whole) is None else "parts"


def _normal(d: Any) -> Any:
    """Return the multivariate normal distribution of each row; None if it is another."""
    while isinstance(d, dist.ExpandedDistribution):
        d = d.base_dist
    kinds = dist.MultivariateNormal | dist.LowRankMultivariateNormal
    return d if isinstance(d, kinds) else None


def _row_names(where, coords, dims) -> np.ndarray:
    """Return a label for each missing value: of its row, or of all its axes."""
    known = [coords.get(axis) for axis in dims] or [None] * len(where)
    parts = [i if labels is None else labels[i] for i, labels in zip(where, known)]
    if len(parts) == 1:
        return np.asarray(parts[0])
    return np.asarray([", ".join(map(str, label)) for label in zip(*parts)])
