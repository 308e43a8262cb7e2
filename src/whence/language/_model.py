"""`Model`: priors, a likelihood, and draws, all in one Equinox module."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import Array

from ..core._convert import whole
from ..core._dtype import relaxed
from ..core._key import as_key, seeded
from ..core._types import PRNGKey, Scalar
from ._draw_data import draw_data
from ._latent import UNDRAWN, Coords, is_derived
from ._show import model_html
from ._sites import Prior, Site, is_model, walk


class Model(eqx.Module):
    """A probabilistic model: latents are fields made by `latent`, the rest is ordinary.

    A draw is a model whose latents have values; a posterior is a batch of models. Write
    `likelihood(self, *inputs)` to return a `numpyro.distributions` object whose
    log-probability is pointwise over data (or a dict of them for several observed
    variables). A model without such a form writes `log_likelihood(self, y, *inputs)`.

    Attributes:
        coords: Labels (or lengths) of named axes; they give latents with `dims` their shape.
    """

    __whence_model__: ClassVar[bool] = True
    __whence_columns__: ClassVar[bool] = True  # tables are dicts of columns, not matrices
    coords: Mapping[str, Any] = eqx.field(
        default=Coords(), converter=Coords, static=True, kw_only=True
    )

    def likelihood(self, *inputs: Any) -> dist.Distribution | dict[str, dist.Distribution]:
        """Return the distribution of the data given this draw and `inputs`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no `likelihood(self, *inputs)` (and no "
            "`log_likelihood(self, y, *inputs)`)."
        )

    def log_likelihood(self, y: Any, *inputs: Any) -> Any:
        """Return the log likelihood of `y`, pointwise over data, in nats."""
        likelihood = self.likelihood(*inputs)
        with relaxed():
            if isinstance(likelihood, Mapping):
                return {name: d.log_prob(y[name]) for name, d in likelihood.items()}
            return likelihood.log_prob(y)

    def prepare(self, y: Any, *inputs: Any) -> tuple[Any, tuple]:
        """Return data and inputs in the form that the likelihood takes; `condition` asks first.

        For a model that understands more than `condition` lets pass, as missing values do.
        Raise `ValueError` on what cannot be data.

        Args:
            y: What `condition` got: an array, or a dict of arrays.
            *inputs: What `condition` got besides.
        """
        return y, inputs

    def for_data[M: "Model"](self: M, y: Any, *inputs: Any) -> M:
        """Return the model for these data; `condition` asks once they are arrays.

        For a model with latents that the data decide, as the path of hidden states of a time
        series is as long as they are.

        Args:
            y: Observed data, after `prepare`.
            *inputs: Further inputs, after `prepare`.
        """
        del y, inputs
        return self

    def sequence(self, target: Any) -> Any:
        """Return what engines with particles see; None if this is no model of hidden states.

        Args:
            target: What `condition` made of this model.
        """
        del target

    def check_observed(self, y: Any, likelihood: Any) -> None:
        """Raise `ValueError` if `y` cannot be data of this model; `condition` asks.

        That shapes broadcast and values lie in the support is checked in any case. Write
        this method to be stricter, or to say it in the words of the model.

        Args:
            y: What `condition` got: an array, or a dict of arrays.
            likelihood: What `likelihood` returned; only its shapes are known.
        """

    def review(self, y: Any, *inputs: Any) -> tuple[str, ...]:
        """Return what to know of this model with these data before any fit, in words.

        `condition` warns of it and `check` lists it. Raise `ValueError` where there can be
        no posterior. Latents have no values yet.

        Args:
            y: What `condition` got: an array, or a dict of arrays.
            *inputs: As `likelihood` takes.
        """
        del y, inputs
        return ()

    def explain(self, y: Any, *inputs: Any) -> str:
        """Say why the log likelihood of this draw is not finite; `check` asks.

        Args:
            y: What `condition` got: an array, or a dict of arrays.
            *inputs: As `likelihood` takes.

        Returns:
            A sentence or two; empty if the model has no better words than `check`.
        """
        del y, inputs
        return ""

    def log_density_given_rest(self, y: Any, *inputs: Any) -> Any:
        """Return the log density of each datum given all others and this draw, in nats.

        For leave-one-out cross-validation of data that are dependent given a draw, whose
        `log_likelihood` is one number. None if the model cannot say.

        Args:
            y: What `condition` got: an array, or a dict of arrays.
            *inputs: As `likelihood` takes.

        References:
            Bürkner, Gabry and Vehtari (2021), Efficient leave-one-out cross-validation for
            Bayesian non-factorized normal and Student-t models,
            doi:10.1007/s00180-020-01045-4.
        """
        del y, inputs

    def sample_prior[M: "Model"](self: M, draws: Any = None, *, key: Any = None) -> M:
        """Return this model with latents drawn from their priors.

        Args:
            draws: How many: a batch of models, whose latents have a leading axis; by default
                one model. Without `key`, the key itself.
            key: A typed key, as `jax.random.key` makes, or a whole number.

        Raises:
            ValueError: If a prior is improper.
        """
        if key is None:
            if isinstance(draws, int | np.integer):
                raise ValueError(
                    f"`key` must be given by name, as `sample_prior({draws}, key=0)`; got none."
                )
            draws, key = None, draws
        key = as_key(key)
        if draws is None:
            return self._sample_prior(key)
        number = whole("draws", least=1)(draws)
        drawn = jax.vmap(self._sample_prior)(jr.split(key, number))
        return adopt_coords(drawn, self)

    def _sample_prior(self, key):
        count = 0

        @relaxed()
        def choose(prior: Prior, value):
            nonlocal count
            count += 1
            if value is not UNDRAWN:
                return jnp.broadcast_to(value, prior.shape)
            try:
                base = jnp.asarray(prior.base.sample(jr.fold_in(key, count)))
                return prior.forward(base)
            except NotImplementedError as error:
                raise ValueError(
                    f"The prior of latent `{prior.name}` is improper "
                    f"({type(prior.base).__name__}) and cannot be sampled."
                ) from error

        return walk(self, choose)

    @seeded
    def predict(self, *inputs: Any, key: PRNGKey) -> Any:
        """Draw data given this draw.

        Args:
            *inputs: As `likelihood` takes.
            key: A typed key.

        Returns:
            An array, or a dict of arrays if there are several observed variables.
        """
        return draw_data(self.likelihood(*inputs), key)

    def check_inputs(self, inputs: tuple, new_inputs: tuple) -> None:
        """Raise `ValueError` if no prediction can be made at `new_inputs`.

        Args:
            inputs: Those that belong to the observed data.
            new_inputs: What `Posterior.predict` got.
        """

    def predict_given(self, y: Any, inputs: tuple, new_inputs: tuple, *, key: PRNGKey) -> Any:
        """Draw new data given this draw and the observed data; `Posterior.predict` asks.

        Data are most often independent given a draw, and this is `predict`. A model in
        which they are not (a Gaussian process, a time series) writes it.

        Args:
            y: What `condition` got: an array, or a dict of arrays.
            inputs: The inputs that belong to `y`.
            new_inputs: Those of the data to draw; the same again for predictive checks.
            key: A typed key.

        Returns:
            As `predict`.
        """
        del y, inputs
        return self.predict(*new_inputs, key=key)

    def _repr_html_(self) -> str:
        return model_html(self)


def sites(model: Model) -> tuple[Site, ...]:
    """Return what is known of the latents without giving them values."""
    found: list[Site] = []

    @relaxed()
    def choose(prior: Prior, value):
        shape = prior.unconstrained_shape
        fixed = value is not UNDRAWN
        if fixed and jnp.broadcast_shapes(jnp.shape(value), prior.shape) != prior.shape:
            raise ValueError(
                f"Latent `{prior.name}` was given a value of shape {jnp.shape(value)}; it "
                f"must have shape {prior.shape}."
            )
        starts = prior.spec.start is not None
        if starts and not isinstance(prior.spec.start, str):
            _check_start(prior)
        local = prior.spec.local
        found.append(Site(prior.name, prior.shape, shape, prior.dims, fixed, starts, local))
        if fixed:
            return jnp.broadcast_to(value, prior.shape)
        return prior.forward(prior.bijector(jnp.zeros(shape)))

    def visit():
        found.clear()
        walk(model, choose)

    jax.eval_shape(visit)
    return tuple(found)


def _check_start(prior: Prior) -> None:
    value = np.asarray(prior.spec.start)
    try:
        fits = np.broadcast_shapes(value.shape, prior.shape) == prior.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"`start` of latent `{prior.name}` must have its shape, {prior.shape}; got "
            f"{value.shape}."
        )
    support: Any = prior.value_prior.support
    with suppress(jax.errors.JAXTypeError, TypeError), jax.ensure_compile_time_eval():
        # Bounds that are traced depend on latents: seen when the run starts.
        inside = np.asarray(support(np.broadcast_to(value, prior.shape)))
        if not inside.all():
            raise ValueError(
                f"`start` of latent `{prior.name}` must lie in the support of its prior "
                f"({support!r}); got {value}."
            )


def constrain(model: Model, position: dict[str, Array]) -> tuple[Model, Scalar]:
    """Return the draw at `position` and the log prior density there, Jacobian included."""
    draw, terms = constrain_with_terms(model, position)
    return draw, total(terms.values())


def look_at_draw(model: Model, look: Callable[[Any], Any]) -> Any:
    """Return what `look` makes of a draw without values: of its shapes and laws.

    `look` is called while the draw is traced; what it returns must hold no value of it.
    """
    found: list[Any] = []

    def visit(position):
        found.append(look(constrain(model, position)[0]))

    shapes = {
        site.name: jax.ShapeDtypeStruct(site.unconstrained_shape, jnp.result_type(float))
        for site in sites(model)
        if not site.fixed
    }
    jax.eval_shape(visit, shapes)
    return found[-1]


def total(terms: Iterable[Array]) -> Scalar:
    """Return the sum of arrays, zero if there are none."""
    return sum(map(jnp.sum, terms), start=jnp.zeros((), dtype=jnp.result_type(float)))


def constrain_with_terms(
    model: Model, position: dict[str, Array], rows: Array | None = None
) -> tuple[Model, dict[str, Array]]:
    """As `constrain`, with the log prior density of each latent by itself.

    Args:
        model: The model; to see some data rows only, as `with_rows` makes it.
        position: Values by name; those of local latents are of `rows`.
        rows: Which data rows these are; None for all.

    Returns:
        The draw, and the terms: numbers, or of local latents one entry per row.
    """
    terms: dict[str, Array] = {}

    @relaxed()
    def choose(prior: Prior, value):
        summed = _sum_by_row if prior.spec.local else jnp.sum
        if value is not UNDRAWN:
            if rows is not None and prior.spec.local:
                value = value[rows]
            value = jnp.broadcast_to(value, prior.shape)
            terms[prior.name] = summed(jnp.asarray(prior.value_prior.log_prob(value)))
            return value
        base, log_det = _forward_and_log_det(prior.bijector, position[prior.name], summed)
        terms[prior.name] = summed(jnp.asarray(prior.base.log_prob(base))) + log_det
        return prior.forward(base)

    return walk(model, choose), terms


def prior_terms(draw: Model) -> dict[str, Array]:
    """Return the log prior density of each latent of a draw, in the space of the model."""
    terms: dict[str, Array] = {}

    @relaxed()
    def choose(prior: Prior, value):
        terms[prior.name] = jnp.asarray(prior.value_prior.log_prob(value))
        return value

    walk(draw, choose)
    return terms


def _forward_and_log_det(bijector, point, summed):
    # `call_with_intermediates` shares work (powers, cumulative sums) with the Jacobian.
    value, intermediates = bijector.call_with_intermediates(point)
    log_det = jnp.asarray(bijector.log_abs_det_jacobian(point, value, intermediates))
    return value, summed(log_det)


def _sum_by_row(terms: Array) -> Array:
    return jnp.sum(terms, axis=tuple(range(1, terms.ndim)))


def unconstrain(model: Model, draw: Model) -> dict[str, Array]:
    """Return the position of `draw`, a model with values; the inverse of `constrain`."""
    return unconstrain_values(model, named_latents(draw))


def unconstrain_values(model: Model, values: Mapping[str, Array]) -> dict[str, Array]:
    """As `unconstrain`, from the values of the latents by path; fixed ones may be left out."""
    position: dict[str, Array] = {}

    @relaxed()
    def choose(prior: Prior, value):
        if value is not UNDRAWN:
            return jnp.broadcast_to(value, prior.shape)
        x = values[prior.name]
        position[prior.name] = prior.bijector.inv(prior.inverse(x))
        return x

    walk(model, choose)
    return position


def start(model: Model, position: dict[str, Array], key: PRNGKey) -> dict[str, Array]:
    """Return `position` with those latents put elsewhere that say where they start."""
    position = dict(position)
    count = 0

    @relaxed()
    def choose(prior: Prior, value):
        nonlocal count
        count += 1
        if value is not UNDRAWN:
            return jnp.broadcast_to(value, prior.shape)
        begin = prior.spec.start
        if isinstance(begin, str):
            # An improper prior has no draws: such a latent stays where it is.
            with suppress(NotImplementedError):
                base = jnp.asarray(prior.base.sample(jr.fold_in(key, count)))
                position[prior.name] = prior.bijector.inv(base)
        elif begin is not None:
            value = jnp.broadcast_to(jnp.asarray(begin, jnp.result_type(float)), prior.shape)
            position[prior.name] = prior.bijector.inv(prior.inverse(value))
        return prior.forward(prior.bijector(position[prior.name]))

    walk(model, choose)
    return position


def named_latents(draw: Model) -> dict[str, Array]:
    """Return the values of all latents by path."""
    values: dict[str, Array] = {}
    for prefix, model in models_inside(draw):
        for field in dataclasses.fields(model):
            value = getattr(model, field.name)
            if "latent" in field.metadata:
                values[prefix + field.name] = value
            elif "latents" in field.metadata:
                values |= {prefix + name: v for name, v in value.items()}
    return values


def named_derived(draw: Any, path: str = "") -> dict[str, Array]:
    """Return the derived values of a model and of the models inside it, by path."""
    values: dict[str, Array] = {}
    for prefix, model in models_inside(draw, path):
        for name in _derived_of(type(model)):
            values[prefix + name] = jnp.asarray(getattr(model, name))
    return values


def derived_names(model: Any) -> list[str]:
    """Return the paths of derived values."""
    return [p + name for p, inner in models_inside(model) for name in _derived_of(type(inner))]


def derived_dims(model: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of the axes of derived values, by path, where they have names."""
    dims = {}
    for prefix, inner in models_inside(model):
        for name, declared in _derived_of(type(inner)).items():
            if declared.dims:
                dims[prefix + name] = declared.dims
    return dims


def all_coords(model: Any) -> dict[str, Any]:
    """Return the coordinates of a model and of the models inside it, which must agree."""
    coords: dict[str, Any] = {}
    for path, inner in models_inside(model):
        for axis, labels in inner.coords.items():
            if not np.array_equal(coords.setdefault(axis, labels), labels):
                raise ValueError(
                    f"Axis {axis!r} must have the same labels in all models; got "
                    f"{list(coords[axis])} and, in `{path.rstrip('.')}`, {list(labels)}. Name "
                    "one of the two axes otherwise."
                )
    return coords


def _derived_of(cls: type) -> dict[str, Any]:
    found = {}
    for base in reversed(cls.__mro__):
        found.update({n: v for n, v in vars(base).items() if is_derived(v)})
    return found


def models_inside(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Return `value` and all models inside it, outermost first, with prefixes of names."""
    found = [(path, value)] if is_model(value) else []
    inside = tree_flatten_with_path(value, is_leaf=lambda v: v is not value and is_model(v))[0]
    for where, leaf in inside:
        if is_model(leaf) and leaf is not value:
            found += models_inside(leaf, f"{path}{keystr(where, simple=True, separator='.')}.")
    return found


def adopt_coords(draws: Any, model: Any) -> Any:
    """Give `draws`, a fresh copy of `model` with values, the labels of `model`.

    Compiled code knows lengths of axes only: a model that comes out of it may carry the
    labels of an earlier one.
    """
    if model is not None:
        for (_, inner), (_, labelled) in zip(models_inside(draws), models_inside(model)):
            object.__setattr__(inner, "coords", labelled.coords)
    return draws
