"""`condition()`: a model and data become a `Target`."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from ..core._convert import one_of
from ..core._feynman_kac import AbstractSequenceTarget, SequenceAt, sequence_at
from ..core._indices import check_indices
from ..core._key import seeded
from ..core._names import check_variable_names
from ..core._numbers import arrays_of
from ..core._results import InferenceWarning
from ..core._show import target_html
from ..core._stream import Stream
from ..core._target import AbstractDescribedTarget, LatentShape
from ..core._types import PRNGKey
from ..core._values import check_values, require_finite
from ._check_data import (
    check_data,
    check_likelihood,
    fixed_by_others,
    likelihood_of,
    refuse_shared_names,
)
from ._draw_data import draw_data
from ._frames import Place
from ._inputs import bound, parameters
from ._latent import Coords
from ._local import give_rows, redraw_rows, with_rows
from ._missing import drop_missing, impute, in_numbers, known_dims
from ._model import (
    Model,
    adopt_coords,
    all_coords,
    constrain,
    constrain_with_terms,
    derived_dims,
    derived_names,
    named_derived,
    named_latents,
    prior_terms,
    sites,
    start,
    total,
    unconstrain,
    unconstrain_values,
)
from ._new_groups import NewGroups, extend, widened
from ._reading import check_dims, read, reread
from ._show import priors_in_words
from ._sites import Site
from ._streamed import StreamTarget, first_rows, streamed


class ModelTarget(AbstractDescribedTarget):
    """The posterior of a `Model` given data; made by `condition`.

    Attributes:
        model: The model, its fixed latents given.
        y: Observed data: an array, or a dict of arrays.
        inputs: Further arguments of `likelihood`.
        sites: The latents.
        name: Name of the observed variable if `y` is a single array.
        rows: Number of data rows; None if the likelihood is no product over rows.
        data_dims: Names of the axes of observed variables, by name.
        tied: Fixed latents whose prior depends on latents that are not fixed. Their density
            is part of the prior, which then has no draws.
        labels: Labels of axes of data that are no axes of the model.
        places: Where categories are among the inputs, and the axes that they index.

    References:
        Phan, Pradhan and Jankowiak (2019), NumPyro's distributions, arXiv:1912.11554.
    """

    model: Model
    y: Any
    inputs: tuple
    sites: tuple[Site, ...] = eqx.field(static=True)
    name: str = eqx.field(static=True)
    rows: int | None = eqx.field(static=True)
    data_dims: tuple[tuple[str, tuple[str, ...]], ...] = eqx.field(static=True)
    tied: tuple[str, ...] = eqx.field(static=True, default=())
    labels: Coords = eqx.field(static=True, default=Coords())
    places: tuple[Place, ...] = eqx.field(static=True, default=())

    @property
    def free(self) -> tuple[Site, ...]:
        """The latents that are not fixed."""
        return tuple(site for site in self.sites if not site.fixed)

    @seeded
    def init(self, *, key: PRNGKey) -> dict[str, Array]:
        """Return a position uniform on (-2, 2), as in Stan, unless a latent says otherwise."""
        keys = jr.split(key, max(len(self.free), 1))
        position = {
            site.name: jr.uniform(k, site.unconstrained_shape, minval=-2.0, maxval=2.0)
            for site, k in zip(self.free, keys)
        }
        if any(site.starts for site in self.free):
            return start(self.model, position, jr.fold_in(key, 1))
        return position

    def log_density(self, position):
        draw, log_prior = constrain(self.model, position)
        terms = jax.tree.leaves(draw.log_likelihood(self.y, *self.inputs))
        return log_prior + sum(jnp.sum(term) for term in terms)

    def constrain(self, position):
        """Return the model with the values that `position` stands for."""
        return constrain(self.model, position)[0]

    def unconstrain(self, draw: Model | Mapping[str, Array]) -> dict[str, Array]:
        """Return the position of a model with values, or of values by name."""
        if isinstance(draw, Mapping):
            return unconstrain_values(self.model, draw)
        return unconstrain(self.model, draw)

    def log_jacobian(self, position):
        """Return the log-Jacobian of `constrain`, in nats."""
        draw, log_prior = constrain(self.model, position)
        # The prior density of a model whose latents are all given is that of their values.
        return log_prior - constrain(draw, {})[1]

    def log_prior_terms(self, draw: Model) -> dict[str, Array]:
        """Return the log prior density of each latent, the fixed ones too, in nats."""
        return prior_terms(draw)

    @property
    def latents(self) -> tuple[LatentShape, ...]:
        """The latents that are not fixed, in the order of the model."""
        return tuple(LatentShape(site.name, tuple(site.shape)) for site in self.free)

    @property
    def sequence(self) -> AbstractSequenceTarget | None:
        """What engines with particles see, if the model is one of hidden states."""
        return self.model.sequence(self)

    def at(self, draws: Any) -> SequenceAt:
        """Return the sequence of hidden states at parameters that are known.

        Args:
            draws: A model with values, or a posterior of this target.
        """
        return sequence_at(self, draws)

    def labelled(self, draws: Model) -> Model:
        """Return draws with the labels of this model's axes."""
        return adopt_coords(draws, self.model)

    @property
    def num_data(self) -> int | None:
        return self.rows

    def log_prior(self, position):
        return constrain(self.model, position)[1]

    def log_likelihood(self, position, rows=None):
        if rows is not None and any(site.local for site in self.sites):
            return self._at(self.at_rows(position, rows), rows)[1]
        y, inputs = (self.y, self.inputs) if rows is None else self.take(rows)
        terms = jax.tree.leaves(self.constrain(position).log_likelihood(y, *inputs))
        return total(terms) if self.rows is None else _by_row(terms)

    @property
    def local(self) -> tuple[str, ...]:
        """Names of the latents with one value per data row that have no fixed value."""
        return tuple(site.name for site in self.free if site.local)

    def at_rows(self, position, rows):
        """Return what some data rows see of a position."""
        local = self.local
        return {name: x[rows] if name in local else x for name, x in position.items()}

    def log_joint_rows(self, position, rows):
        """Return the log prior of global latents, and the log density of each row given them.

        Args:
            position: From `at_rows`.
            rows: Numbers of the data rows.
        """
        terms, likelihood = self._at(position, rows)
        local = {site.name for site in self.sites if site.local}
        shared = total(term for name, term in terms.items() if name not in local)
        return shared, likelihood + sum(terms[name] for name in local)

    def _at(self, position, rows):
        """Return log prior terms and the log likelihood of some rows, by row."""
        model = with_rows(self.model, rows.size)
        draw, terms = constrain_with_terms(model, position, rows)
        y, inputs = self.take(rows)
        return terms, _by_row(jax.tree.leaves(draw.log_likelihood(y, *inputs)))

    def take(self, rows: Array) -> tuple[Any, tuple]:
        """Return data and inputs at some rows."""

        def pick(leaf):
            is_data = eqx.is_array(leaf) and leaf.ndim > 0 and leaf.shape[0] == self.rows
            return leaf[rows] if is_data else leaf

        return jax.tree.map(pick, (self.y, self.inputs))

    def with_data(self, data: Mapping[str, Any]) -> "ModelTarget":
        """Return this target with other observed data of the same shapes, by name."""
        single = not isinstance(self.y, Mapping)
        y = data[self.name] if single else {name: data[name] for name in self.y}
        return dataclasses.replace(self, y=y)

    @seeded
    def sample_prior(self, *, key: PRNGKey) -> Model:
        if self.tied:
            raise ValueError(
                f"The prior cannot be drawn from: latent `{self.tied[0]}` is fixed, and its "
                "prior depends on latents that are not. Its value tells of them as data do: "
                "put it into the likelihood, or fix them too."
            )
        return self.model.sample_prior(key)

    @seeded
    def sample_prior_position(self, *, key: PRNGKey) -> dict[str, Array]:
        """Return one draw from the prior, in unconstrained space."""
        return self.unconstrain(self.sample_prior(key=key))

    def variables(self, draw):
        return {**named_latents(draw), **named_derived(draw)}

    @property
    def dims(self):
        dims = {site.name: site.dims for site in self.sites if site.dims}
        data = dict(self.data_dims) | known_dims(self.model)
        return dims | derived_dims(self.model) | data

    @property
    def coords(self):
        return {**self.labels, **all_coords(self.model)}

    @property
    def observed_data(self):
        return dict(self.y) if isinstance(self.y, Mapping) else {self.name: self.y}

    @property
    def constant_data(self):
        return self.name_inputs(self.inputs)

    def leaf_name(self, path: str) -> str:
        """Return the name of an array of this target for messages, given its path."""
        first, _, rest = path.partition(".")
        if first != "inputs":
            return (
                f"`{rest}` of {type(self.model).__name__}" if first == "model" else f"`{path}`"
            )
        number, _, inside = rest.partition(".")
        names = parameters(self.model)
        known = f" (`{names[int(number)]}`)" if int(number) < len(names) else ""
        return f"`inputs[{number}]`{known}" + (f" at {inside!r}" if inside else "")

    def new_inputs(self, inputs: tuple, named: Mapping[str, Any]) -> tuple:
        """Return inputs for `predict`, converted; refuse what cannot be one.

        Args:
            inputs: As `likelihood` takes.
            named: Those given by name.

        Raises:
            ValueError: Naming the input, the rule and what was given.
        """
        return self._converted(
            self._read_again(bound(self.model, inputs, named), False)[0], {}
        )[0]

    def new_groups(self, inputs: tuple, named: Mapping[str, Any]) -> NewGroups | tuple:
        """As `new_inputs`, where groups may be new: their effects are drawn from the prior.

        Args:
            inputs: As `likelihood` takes.
            named: Those given by name.
        """
        inputs, more = self._read_again(bound(self.model, inputs, named), True)
        labels = {a: [*map(str, self.coords[a]), *map(str, new)] for a, new in more.items()}
        inputs, new = self._converted(inputs, labels)
        return NewGroups(inputs, new.model) if more else inputs

    def _read_again(self, inputs, grow):
        names = parameters(self.model)
        return reread(self.model, inputs, names, self.places, self.coords, grow, self.inputs)

    def _converted(self, inputs, labels) -> tuple[tuple, "ModelTarget"]:
        inputs = tuple(check_data(value, f"inputs[{i}]") for i, value in enumerate(inputs))
        model = widened(self.model, labels) if labels else self.model
        found = sites(model) if labels else self.sites
        new = dataclasses.replace(self, model=model, inputs=inputs, sites=found)
        require_finite(new, self)
        checked = new
        if any(site.local for site in self.sites):
            model = with_rows(model, self._num_rows(inputs))
            checked = dataclasses.replace(new, model=model, sites=sites(model))
        check_indices(checked, _likelihood_at)
        self.model.check_inputs(self.inputs, inputs)
        return inputs, new

    def name_inputs(self, inputs: tuple | NewGroups) -> dict[str, Array]:
        """Return arrays among the inputs of `likelihood`, by name of its parameter."""
        inputs = inputs.inputs if isinstance(inputs, NewGroups) else inputs
        names = parameters(self.model)
        names += [f"input_{i}" for i in range(len(names), len(inputs))]
        named = {}
        for name, value in zip(names, inputs):
            for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
                suffix = jax.tree_util.keystr(path, simple=True, separator=".")
                named[f"{name}.{suffix}" if suffix else name] = leaf
        return {name: leaf for name, leaf in named.items() if eqx.is_array(leaf)}

    def pointwise(self, draw):
        value = draw.log_likelihood(self.y, *self.inputs)
        return dict(value) if isinstance(value, Mapping) else {self.name: value}

    def pointwise_given_rest(self, draw):
        """Return the log density of each datum given all others, by observed variable."""
        value = draw.log_density_given_rest(self.y, *self.inputs)
        if value is None:
            return self.pointwise(draw)
        return dict(value) if isinstance(value, Mapping) else {self.name: value}

    def predict(self, draw, inputs, *, key):
        draw, inputs, key = _with_groups(draw, inputs, key)
        if inputs is not None and any(site.local for site in self.sites):
            key, key_rows = jr.split(key)
            draw = redraw_rows(draw, self._num_rows(inputs), key=key_rows)
        drawn = draw.predict(*(self.inputs if inputs is None else inputs), key=key)
        drawn = dict(drawn) if isinstance(drawn, Mapping) else {self.name: drawn}
        if inputs is not None:
            return drawn
        # One parameter for all data (`Normal(mu, sigma)`) draws a scalar: draw one per row.
        observed = self.observed_data
        short = any(jnp.shape(v) != jnp.shape(observed[n]) for n, v in drawn.items())
        return self._predict_like(draw, observed, key) if short else drawn

    def predict_given(self, draw, inputs, *, key):
        """Return new data drawn given `draw` and the observed data."""
        draw, inputs, key = _with_groups(draw, inputs, key)
        if type(draw).predict_given is Model.predict_given:
            return self.predict(draw, inputs, key=key)
        new = self.inputs if inputs is None else inputs
        drawn = draw.predict_given(self.y, self.inputs, new, key=key)
        return dict(drawn) if isinstance(drawn, Mapping) else {self.name: drawn}

    def _repr_html_(self) -> str:
        title = f"{type(self.model).__name__} given data"
        return target_html(self, title, priors_in_words(self.model))

    def _num_rows(self, inputs: tuple) -> int:
        """Return the number of rows of new inputs, by those that have one entry per row."""
        for old, new in zip(jax.tree.leaves(self.inputs), jax.tree.leaves(inputs)):
            if jnp.ndim(old) > 0 and jnp.shape(old)[0] == self.rows:
                return jnp.shape(new)[0]
        assert self.rows is not None
        return self.rows

    def _predict_like(self, draw, observed, key):
        likelihood = draw.likelihood(*self.inputs)
        if not isinstance(likelihood, Mapping):
            likelihood = {self.name: likelihood}
        return draw_data(likelihood, key, observed)


def _with_groups(draw, inputs, key):
    """Return a draw with the groups that new inputs ask for, and these inputs."""
    if not isinstance(inputs, NewGroups):
        return draw, inputs, key
    key, key_groups = jr.split(key)
    return extend(draw, inputs.model, key=key_groups), inputs.inputs, key


def _by_row(terms: list[Array]) -> Array:
    """Return sums of the terms of each row."""
    by_row = [jnp.sum(term, axis=tuple(range(1, jnp.ndim(term)))) for term in terms]
    return sum(by_row[1:], start=by_row[0])


def _likelihood_at(target: ModelTarget, position: Mapping[str, Array]) -> Any:
    """Return what inputs of `predict` make: the numbers in the distributions of the data."""
    draw = target.constrain(position)
    if type(draw).likelihood is Model.likelihood:
        return draw.predict(*target.inputs, key=jr.key(0))
    return jax.tree.leaves(likelihood_of(draw, target))


@overload
def condition(
    model: Model,
    y: Stream,
    *,
    name: str | None = None,
    dims: Any = (),
    missing: str | None = None,
) -> StreamTarget: ...
@overload
def condition(
    model: Model,
    y: Any,
    *inputs: Any,
    name: str | None = None,
    dims: Any = (),
    missing: str | None = None,
) -> ModelTarget: ...
def condition(
    model: Model,
    y: Any,
    *inputs: Any,
    name: str | None = None,
    dims: str | tuple[str, ...] | Mapping[str, Any] = (),
    missing: str | None = None,
) -> ModelTarget | StreamTarget:
    """Condition `model` on data: the posterior, as a `Target` for any engine.

    Args:
        model: The model; latents with values are fixed to them.
        y: Observed data: an array, or a dict of arrays for several observed variables. Columns
            of pandas, polars and xarray keep their name and the labels of their rows. Or a
            `Stream` of rows `(y, *inputs)`.
        *inputs: What `likelihood` takes besides the draw: arrays or pytrees of them. A
            table is a dict of its columns; text and categories become whole numbers, and the
            axis that they index gets their labels (see `categories`).
        name: Name of the observed variable if `y` is a single array; by default that of its
            column, or "y".
        dims: Names of the axes of `y`; a dict of them for several observed variables.
        missing: What to do with missing values: `"drop"` leaves out rows in which a value of
            `y` or of an input with one entry per row is missing; `"impute"` makes latents
            `y_missing` of missing values of `y`, which need a continuous likelihood. By
            default they are refused unless the model itself hides them.

    Returns:
        The target. Data are its leaves: other data of the same shape reuse what is compiled.

    Raises:
        ValueError: If the model's priors do not fit together, or data and likelihood do not.

    Warns:
        InferenceWarning: Of what the model's `review` says.
    """
    if not isinstance(model, Model):
        raise ValueError(f"`model` must be an instance of a `whence.Model`; got {model!r}.")
    if isinstance(y, Stream):
        rows = first_rows(model, y, inputs)
        return streamed(condition(model, *rows, name=name, dims=dims, missing=missing), y)
    if missing is not None:
        missing = one_of("missing", ("drop", "impute"))(missing)
    y, inputs = model.prepare(y, *inputs)
    given = read(model, y, inputs, parameters(model), name, dims, missing == "drop")
    model, y, inputs, name, dims = given.model, given.y, given.inputs, given.name, given.dims
    y = check_data(in_numbers(y) if missing else y, "y", what=name)
    inputs = tuple(check_data(value, f"inputs[{i}]") for i, value in enumerate(inputs))
    labels = given.labels
    if missing == "drop":
        model, y, inputs, labels = drop_missing(given, y, inputs)
    model = arrays_of(model, f"of {type(model).__name__}")
    model = give_rows(model, y)
    model = model.for_data(y, *inputs)
    plain = model
    if missing == "impute":
        model = impute(model, y, inputs, name, {**labels, **all_coords(model)}, dims)
    found = sites(model)
    names = [site.name for site in found]
    refuse_shared_names({*names, *derived_names(model)}, y, name)
    target = ModelTarget(model, y, inputs, found, name, None, (), (), labels, given.places)
    data_dims = check_dims(dims, target.observed_data, target.coords)
    target = dataclasses.replace(target, data_dims=data_dims)
    rows, tied = check_likelihood(target), fixed_by_others(target)
    locals_ = [site.name for site in found if site.local]
    if locals_ and rows is None:
        raise ValueError(
            f"Latent `{locals_[0]}` is local, with one value per data row, so the log "
            "likelihood must have one entry per row (a leading axis of its length); it has not."
        )
    # Imputed values belong to rows of their own.
    rows = rows if model is plain else None
    target = dataclasses.replace(target, rows=rows, tied=tied)
    named = {*names, *derived_names(model), *target.observed_data}
    for argument in target.constant_data:
        if argument in named:
            raise ValueError(
                f"An input of `likelihood` must not have the name of a latent, a derived value "
                f"or observed data; got {argument!r}. Rename the argument."
            )
    groups = ([*names, *derived_names(model)], target.observed_data, target.constant_data)
    check_variable_names(groups, target.dims)
    check_values(target)
    check_indices(target)
    for remark in model.review(y, *inputs):
        warnings.warn(remark, InferenceWarning, stacklevel=2)
    return target
