"""What a posterior computes for each draw: functions of `(target, draw)`, and their map."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from ..core._batches import by_draw
from ..core._cache import compiled, is_data
from ..core._convert import one_of
from ..core._engine import Sample
from ..core._indices import check_indices
from ..core._target import (
    AbstractDescribedTarget,
    DependentData,
    SplitsPrior,
    TakesInputs,
    TakesNewGroups,
)
from ..core._tree import named_leaves
from ..core._types import PRNGKey


def over_draws(target: Any, function: Callable[..., PyTree], batched: PyTree, *rest) -> PyTree:
    """Return `function(target, draw, *rest)` of all draws, as NumPy arrays.

    Args:
        target: The target; None for a posterior without one.
        function: A module-level function.
        batched: What differs from draw to draw, with axes `(chain, draw)`.
        *rest: Further arguments.

    Raises:
        ValueError: If there is no target.
    """
    if target is None:
        raise ValueError(
            "This posterior is without its target: it was made of a closed form, or loaded "
            "alone; then pass it: `whence.load(path, target=target)`."
        )
    out = compiled(map_draws, function, target, batched, rest).call(
        function, target, batched, rest
    )
    return jax.tree.map(np.asarray, out)


def new_inputs(
    target: Any, inputs: tuple, named: Mapping[str, Any], new_groups: str | None = None
) -> Any:
    """Return new inputs in the form that `predict` of the target takes.

    Args:
        target: A described target.
        inputs: As the user gave them.
        named: Those given by name.
        new_groups: "prior" if groups may be new; else None.

    Raises:
        ValueError: If they cannot be inputs.
    """
    if new_groups is not None:
        one_of("new_groups", ("prior",))(new_groups)
        if not isinstance(target, TakesNewGroups):
            raise ValueError(
                f"`new_groups` needs a target that knows its groups; {type(target).__name__} "
                "does not."
            )
        return target.new_groups(inputs, named)
    if isinstance(target, TakesInputs):
        return target.new_inputs(inputs, named)
    if named:
        raise ValueError(
            f"`predict` takes the inputs of {type(target).__name__} in their order only; got "
            f"`{next(iter(named))}` by name."
        )
    plain = lambda x: isinstance(x, bool | int | float | str) or callable(x)
    return jax.tree.map(lambda x: x if plain(x) else np.asarray(x), inputs)


def predictions(
    target: Any, sample: Sample, inputs: Any, key: PRNGKey
) -> dict[str, np.ndarray]:
    """Return one data set drawn for every draw, by observed variable."""
    lead = jax.tree.leaves(sample.positions)[0].shape[:2]
    keys = np.asarray(jr.key_data(jr.split(key, lead)))
    try:
        drawn = over_draws(target, predict, (sample.positions, keys), inputs)
    except (ValueError, TypeError) as error:
        raise ValueError(no_sampler(error)) from error
    # The observed variables first; a model may have others at new inputs, as forecasts are.
    names = [name for name in target.observed_data if name in drawn]
    return {name: drawn[name] for name in dict.fromkeys((*names, *drawn))}


def no_sampler(error: Exception) -> str:
    """Say why no data could be drawn, and what would help."""
    said = str(error).splitlines()[0]
    if "total_count_max" in said:
        said += (
            " Its totals are known only when the program runs: give the largest, as "
            "`Multinomial(n, probs=p, total_count_max=1000)`, or write `predict` in a model of "
            "whence."
        )
    return said


def map_draws(function, target, batched, rest):
    """Map `function(target, draw, *rest)` over leading axes `(chain, draw)`."""
    return by_draw(lambda b: function(target, b, *rest), batched)


def constrain(target, position):
    """Return the draw, in constrained space."""
    return target.constrain(position)


def variables(target, position) -> dict[str, Array]:
    """Return latents and derived values by name."""
    draw = target.constrain(position)
    if isinstance(target, AbstractDescribedTarget):
        return target.variables(draw)
    return named_leaves(draw)


def apply(target, position, function):
    """Return `function` of the draw."""
    return function(target.constrain(position))


def mapped(target: Any, positions: PyTree, function: Callable[..., PyTree]) -> PyTree:
    """Return `function` of all draws; refuse one that reads beyond an axis."""
    if not callable(function):
        raise ValueError(f"`function` must be a function of one draw; got {function!r}.")
    if target is not None and not any(map(is_data, jax.tree.leaves(function))):
        check_indices(target, Partial(_applied, function))
    return over_draws(target, apply, positions, function)


def _applied(function, target, position):
    return apply(target, position, function)


def pointwise(target, position):
    """Return the pointwise log likelihood, in nats, by observed variable."""
    draw = target.constrain(position)
    if isinstance(target, DependentData):
        return target.pointwise_given_rest(draw)
    return target.pointwise(draw)


def log_prior(target: Any, position):
    """Return the log prior density in the space of the model, in nats, by latent if known."""
    draw = target.constrain(position)
    if isinstance(target, SplitsPrior):
        return target.log_prior_terms(draw)
    return {"latents": target.log_prior(position) - target.log_jacobian(position)}


def predict(target, batched, inputs):
    """Draw observed variables; `batched` is a position and the data of a key."""
    position, key = batched
    draw = target.constrain(position)
    method = target.predict_given if isinstance(target, DependentData) else target.predict
    return method(draw, inputs, key=jr.wrap_key_data(key))
