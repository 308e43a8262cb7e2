"""The suite that the author of a model runs: `check_model(MyModel(), y, *inputs, key=key)`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ..core._dtype import relaxed
from ..core._key import seeded
from ..core._target import AbstractDescribedTarget, HasJacobian, SplitsPrior
from ..core._types import Position, PRNGKey
from ..language._condition import ModelTarget, condition
from ..language._model import Model, named_latents
from ..language._sites import Prior, Site, walk
from ._require import require, require_close

_TRIES = 100  # starting points tried to find one of finite density


@seeded
def check_model(
    model: Model,
    y: Any,
    *inputs: Any,
    key: PRNGKey,
    points: int = 3,
    rows: bool = True,
    prior_draws: int = 20,
) -> None:
    """Check that a model is what its priors and likelihood say it is.

    At several points of unconstrained space: the log density is log prior plus log
    likelihood, the log prior that of each latent plus the log-Jacobian; the map to the
    model's own scale lands in the support of every prior, can be inverted, and its
    log-Jacobian is that of automatic differentiation; the gradient is that of finite
    differences; the log likelihood is one number per datum and that of some rows is what it
    is among all. Draws from proper priors lie in their supports.

    Args:
        model: The model, its latents not yet drawn.
        y: Observed data, as `condition` takes them.
        *inputs: What `likelihood` takes.
        key: A typed key.
        points: Number of points to check at.
        rows: Whether rows of the data may be taken alone, as minibatches do; False for a
            likelihood that runs along its data, such as a time series.
        prior_draws: Number of draws from the prior.

    Raises:
        AssertionError: With a sentence that names what is wrong.
    """
    target = condition(model, y, *inputs)
    key_points, key_prior = jr.split(key)
    require(bool(target.free), "The model has no latent that is free.")
    for number, position in enumerate(finite_positions(target, points, key_points)):
        check_parts(target, position)
        check_round_trip(target, position)
        check_jacobian(target, position)
        check_gradient(target, position, key=jr.fold_in(key_points, number))
        check_likelihood_shape(target, position, rows=rows)
    check_prior_draws(target, prior_draws, key=key_prior)


def check_parts(target: AbstractDescribedTarget, position: Position) -> None:
    """The log density is the log prior plus the log likelihood."""
    whole, prior, rows = _log_parts(target, position)
    whole, prior, data = float(whole), float(prior), float(np.sum(rows))
    require(
        _near(whole, prior + data),
        f"`log_density` is {whole:.8g}, but log prior {prior:.8g} plus log likelihood "
        f"{data:.8g} is {prior + data:.8g}.",
    )
    if isinstance(target, SplitsPrior) and isinstance(target, HasJacobian):
        terms = float(_sum_of_terms(target, position))
        require(
            _near(terms, prior),
            f"`log_prior_terms` and `log_jacobian` sum to {terms:.8g}, but `log_prior` is "
            f"{prior:.8g}.",
        )


def check_round_trip(target: ModelTarget, position: Position) -> None:
    """A draw lies in its support and leads back to its position."""
    draw, back = _there_and_back(target, position)
    check_support(target, draw, "A draw")
    require_close(back, position, "A position constrained and unconstrained", "before")


def check_support(target: ModelTarget, draw: Model, what: str) -> None:
    """Every latent of a draw lies in the support of its prior."""
    values, inside = named_latents(draw), _inside_and_log_prior(target, draw)[0]
    for site in target.sites:
        value = values[site.name]
        require(
            value.shape == site.shape,
            f"{what} of latent `{site.name}` has shape {value.shape}, not {site.shape}.",
        )
        require(
            bool(np.all(inside[site.name])),
            f"{what} of latent `{site.name}` lies outside its support: {np.asarray(value)}.",
        )


def check_jacobian(target: ModelTarget, position: Position) -> None:
    """The change of variables is that of automatic differentiation.

    The log prior at a position must be the log density of the priors at the draw, each on
    its own scale, plus the log-determinant of the map between them.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(position))
    jacobian = np.asarray(_jacobian(target, position))
    require(
        len(jacobian) == size,
        f"A draw has {len(jacobian)} free coordinates, a position {size}.",
    )
    sign, log_det = np.linalg.slogdet(jacobian)
    require(sign != 0, "The map from position to draw is singular.")
    log_prior = _inside_and_log_prior(target, _there_and_back(target, position)[0])[1]
    expected = float(log_prior) + log_det
    got = float(_log_parts(target, position)[1])
    require(
        _near(got, expected),
        f"`log_prior` is {got:.8g}; the priors at the draw with the Jacobian of automatic "
        f"differentiation are {expected:.8g}.",
    )


def _coordinates(value: Array, site: Site) -> Array:
    """Entries of a constrained value that determine it, in whose measure its density is."""
    shape, free = site.shape, site.unconstrained_shape
    if int(np.prod(shape)) == int(np.prod(free)):
        return value.ravel()
    if shape[:-1] == free[:-1] and shape[-1] == free[-1] + 1:
        return value[..., :-1].ravel()  # a simplex: all but the last
    diagonal = {k * (k - 1) // 2: -1, k * (k + 1) // 2: 0} if (k := shape[-1]) else {}
    rows, cols = np.tril_indices(k, diagonal[free[-1]])  # a triangular factor
    return value[..., rows, cols].ravel()


def check_gradient(
    target: AbstractDescribedTarget, position: Position, *, key: PRNGKey
) -> None:
    """The gradient is that of central differences along a random direction."""
    flat, unravel = ravel_pytree(position)
    value, gradient = _value_and_gradient(target, position)
    gradient = ravel_pytree(gradient)[0]
    require(
        bool(np.isfinite(gradient).all()),
        f"The gradient is not finite though the log density is {float(value):.6g}: "
        f"{unravel(gradient)}.",
    )
    direction = jr.normal(key, flat.shape, flat.dtype)
    direction /= jnp.linalg.norm(direction)
    got = float(gradient @ direction)

    def difference(step):
        points = (unravel(flat + step * direction), unravel(flat - step * direction))
        up, down = (_value_and_gradient(target, point)[0] for point in points)
        return float((up - down) / (2 * step))

    precision = float(jnp.finfo(flat.dtype).eps)
    step = precision ** (1 / 3)
    estimate, coarser = difference(step), difference(2 * step)
    # Truncation is seen by the coarser step, rounding follows from the value's size.
    rounding = 100 * precision * max(abs(float(value)), 1.0) / step
    allowed = 1e-4 * abs(got) + 2 * abs(estimate - coarser) + rounding
    require(
        abs(got - estimate) <= allowed,
        f"The gradient along a random direction is {got:.8g}, by finite differences "
        f"{estimate:.8g} (allowed difference {allowed:.2g}).",
    )


def check_likelihood_shape(target: ModelTarget, position: Position, *, rows: bool) -> None:
    """The log likelihood is pointwise, and rows taken alone have the same terms."""
    pointwise, observed = _pointwise(target, position), target.observed_data
    for name, value in pointwise.items():
        shape = np.shape(observed[name])[: np.ndim(value)] if name in observed else ()
        require(
            np.ndim(value) == 0 or np.shape(value) == shape,
            f"The log likelihood of {name!r} has shape {np.shape(value)}, which is not that "
            f"of the leading axes of the data, {np.shape(observed.get(name, ()))}.",
        )
        require(
            bool(np.isfinite(value).all()), f"The log likelihood of {name!r} is not finite."
        )
    num_data = target.num_data
    if num_data is None or not rows:
        return
    every = np.asarray(_log_parts(target, position)[2])
    require(
        every.shape == (num_data,),
        f"`log_likelihood` must have one entry for each of {num_data} rows; got shape "
        f"{every.shape}.",
    )
    some = np.unique(np.linspace(0, num_data - 1, 3).astype(int))
    try:
        alone = np.asarray(target.log_likelihood(position, jnp.asarray(some)))
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"The log likelihood of some rows alone fails ({error}). If data cannot be taken "
            "row by row, pass `rows=False` (and use no minibatches)."
        ) from error
    require(
        alone.shape == some.shape and all(map(_near, alone, every[some])),
        f"The log likelihood of rows {some} alone is {alone}, among all rows "
        f"{every[some]}. If data cannot be taken row by row, pass `rows=False` (and use no "
        "minibatches).",
    )


def check_prior_draws(target: ModelTarget, number: int, *, key: PRNGKey) -> None:
    """Draws from proper priors lie in their supports and have a position."""
    try:
        draws = jax.jit(jax.vmap(lambda k: target.sample_prior(key=k)))(jr.split(key, number))
    except ValueError as error:
        if "improper" in str(error):
            return
        raise AssertionError(f"The prior cannot be sampled: {error}.") from error
    for i in range(number):
        draw = jax.tree.map(lambda leaf: leaf[i], draws)
        check_support(target, draw, "A prior draw")
        position = _unconstrain(target, draw)
        require(
            all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(position)),
            f"A prior draw has no finite position: {position}.",
        )


def finite_positions(
    target: AbstractDescribedTarget, points: int, key: PRNGKey
) -> list[Position]:
    """Random positions at which the log density is finite."""
    found = []
    for attempt in jr.split(key, _TRIES):
        position = target.init(key=attempt)
        if np.isfinite(_value_and_gradient(target, position)[0]):
            found.append(position)
        if len(found) == points:
            return found
    raise AssertionError(
        f"The log density is finite at only {len(found)} of {_TRIES} random positions; "
        "`whence.check(target)` says what is not finite."
    )


# Compiled once for all points; the target is an argument, so its data are no constants.


@eqx.filter_jit
def _log_parts(target, position):
    prior, data = target.log_prior(position), target.log_likelihood(position)
    return target.log_density(position), prior, data


@eqx.filter_jit
def _sum_of_terms(target, position):
    terms = target.log_prior_terms(target.constrain(position))
    return target.log_jacobian(position) + sum(jnp.sum(term) for term in terms.values())


@eqx.filter_jit
def _value_and_gradient(target, position):
    return jax.value_and_grad(target.log_density)(position)


@eqx.filter_jit
def _there_and_back(target, position):
    draw = target.constrain(position)
    return draw, target.unconstrain(draw)


@eqx.filter_jit
def _inside_and_log_prior(target, draw):
    """Whether each latent is in its support, and the priors on the model's own scale."""
    inside, total = {}, 0.0

    def choose(prior: Prior, value: Any) -> Array:
        nonlocal total
        del value  # that of the undrawn model
        value = values[prior.name]
        support = prior.value_prior.support
        with relaxed():
            inside[prior.name] = support(value) if support is not None else False
            log_prob = prior.value_prior.log_prob(value)
        total += jnp.sum(log_prob)
        return value

    values = named_latents(draw)
    walk(target.model, choose)
    return inside, total


@eqx.filter_jit
def _unconstrain(target, draw):
    return target.unconstrain(draw)


@eqx.filter_jit
def _pointwise(target, position):
    return target.pointwise(target.constrain(position))


@eqx.filter_jit
def _jacobian(target, position):
    flat, unravel = ravel_pytree(position)

    def coordinates(flat):
        values = named_latents(target.constrain(unravel(flat)))
        return jnp.concatenate([_coordinates(values[s.name], s) for s in target.free])

    return jax.jacfwd(coordinates)(flat)


def _near(a: float, b: float) -> bool:
    rtol = 1e-6 if jax.config.read("jax_enable_x64") else 1e-3
    return bool(abs(a - b) <= rtol * max(1.0, abs(a), abs(b)))
