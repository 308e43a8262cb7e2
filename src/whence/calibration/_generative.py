"""Targets as generators: parameters from the prior, data given them, what to compare."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from ..core._batches import by_draw
from ..core._cache import compiled
from ..core._convert import fraction
from ..core._require import require_engine, require_key, require_target
from ..core._target import AbstractDescribedTarget, ReplacesData
from ..core._types import Draw, PRNGKey

LOG_LIKELIHOOD = "log_likelihood"
Functions = tuple[tuple[str, Callable[..., Any]], ...]
Shapes = tuple[tuple[str, jax.ShapeDtypeStruct], ...]


def check_arguments(target: Any, engine: Any, key: Any, alpha: float) -> Any:
    """Return the target; raise `ValueError` unless a test can be made of these."""
    require_target(target)
    if not isinstance(target, AbstractDescribedTarget) or not isinstance(target, ReplacesData):
        raise ValueError(
            "`target` must be able to draw from its prior, draw data and take other data "
            "(`sample_prior`, `predict`, `with_data`), as targets of `whence.condition` and "
            f"`whence.from_numpyro` are; got {type(target).__name__}."
        )
    require_engine(engine)
    require_key(key)
    fraction("alpha")(alpha)
    engine.validate(target)
    return target


def check_functions(test_quantities: Mapping[str, Any] | None) -> Functions:
    """Return users' quantities as pairs, which can be part of a program."""
    if not isinstance(test_quantities, Mapping | None):
        raise ValueError(
            f"`test_quantities` must be a dict of functions by name; got {test_quantities!r}."
        )
    for name, function in (test_quantities or {}).items():
        if not callable(function):
            raise ValueError(
                f"`test_quantities[{name!r}]` must be a function of a draw and its data; got "
                f"{function!r}."
            )
    return tuple((test_quantities or {}).items())


def shapes_of(target: AbstractDescribedTarget) -> Shapes:
    """Return shapes and dtypes of the observed data, by name."""
    return tuple(
        (name, jax.ShapeDtypeStruct(np.shape(value), value.dtype))
        for name, value in target.observed_data.items()
    )


def draw_data(
    target: AbstractDescribedTarget, draw: Draw, shapes: Shapes, key: PRNGKey
) -> dict[str, Array]:
    """Return data drawn given `draw`, as the target's own data are shaped."""
    drawn = target.predict(draw, None, key=key)
    data = {}
    for name, like in shapes:
        value = jnp.asarray(drawn[name])
        if value.shape != like.shape or not np.can_cast(value.dtype, like.dtype, "same_kind"):
            # Counts that a user keeps as floats are fine; floats kept as counts are not.
            raise ValueError(
                f"`target` predicts {name!r} as {value.dtype}{list(value.shape)}, but its data "
                f"are {like.dtype}{list(like.shape)}. Condition it on data of the type and "
                "shape that its likelihood draws."
            )
        data[name] = value.astype(like.dtype)
    return data


def quantities(
    target: AbstractDescribedTarget, draw: Draw, data: Mapping[str, Array], functions: Functions
) -> dict[str, Array]:
    """Return all that is compared: variables, log likelihood, and users' quantities."""
    found = dict(target.variables(draw))
    terms = [jnp.sum(term) for term in target.pointwise(draw).values()]
    if terms:
        found[LOG_LIKELIHOOD] = jnp.asarray(sum(terms))
    y = next(iter(data.values())) if len(data) == 1 else dict(data)
    for name, function in functions:
        if name in found:
            raise ValueError(
                f"`test_quantities` must not have the name of a variable; got {name!r}."
            )
        found[name] = jnp.asarray(function(draw, y))
    return found


def simulate(
    target: AbstractDescribedTarget, shapes: Shapes, functions: Functions, keys: Array
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Draw parameters from the prior and data given them, one for each key.

    Returns:
        The quantities and the data, each with a leading axis of simulations.

    Raises:
        ValueError: If the target cannot draw from its prior or predict.
    """
    arguments = (target, shapes, functions, keys)
    try:
        program = compiled(_simulate, *arguments)
    except NotImplementedError as error:
        raise ValueError(
            f"`target` must be able to draw data given parameters: {error}"
        ) from error
    return jax.tree.map(np.asarray, program.call(*arguments))


def _simulate(target, shapes, functions, keys):
    def one(key):
        prior_key, data_key = jr.split(key)
        draw = target.sample_prior(key=prior_key)
        data = draw_data(target, draw, shapes, data_key)
        return quantities(target.with_data(data), draw, data, functions), data

    # One at a time: memory stays that of a single data set.
    return jax.lax.map(one, keys)


def evaluate(
    target: AbstractDescribedTarget, positions: Any, data: dict[str, Any], functions: Functions
) -> dict[str, np.ndarray]:
    """Return the quantities at many positions."""
    arguments = (target, positions, data, functions)
    return jax.tree.map(np.asarray, compiled(_evaluate, *arguments).call(*arguments))


def _evaluate(target, positions, data, functions):
    one = lambda position: quantities(target, target.constrain(position), data, functions)
    return by_draw(one, positions)
