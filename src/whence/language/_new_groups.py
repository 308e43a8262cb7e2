"""Groups that a fit never saw: their effects are drawn from the prior, given each draw."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr

from ..core._dtype import relaxed
from ..core._types import PRNGKey
from ._model import Model, named_latents, sites
from ._reading import with_coords
from ._sites import Prior, walk


class NewGroups(NamedTuple):
    """Inputs of predictions, some of groups that the fit never saw.

    Attributes:
        inputs: The inputs.
        model: The model with these groups along its axes too.
    """

    inputs: tuple
    model: Model


def widened(model: Model, labels: Mapping[str, Any]) -> Model:
    """Return a model with more groups along its axes.

    Args:
        model: The model.
        labels: All labels of the axes that have new ones.

    Raises:
        ValueError: If a latent has no prior for more groups.
    """
    wider = with_coords(model, labels)
    try:
        old, new = sites(model), sites(wider)
    except ValueError as error:
        raise ValueError(
            f"New groups along {', '.join(map(repr, labels))} cannot be drawn from their "
            f"prior, which needs something of each group that new ones do not have. {error}"
        ) from error
    if [site.shape for site in old] == [site.shape for site in new]:
        raise ValueError(
            f"No latent takes its shape from axis {', '.join(map(repr, labels))}, so there is "
            "no prior of new groups: give the latent `dims`, and the model `coords`."
        )
    return wider


def extend(draw: Model, wider: Model, *, key: PRNGKey) -> Model:
    """Return a draw with effects of new groups, from their prior given the rest of the draw.

    Batch axes of a prior are independent given what the prior depends on, so that the effects
    of the old groups say nothing else of the new ones.

    Args:
        draw: A draw of the model that was fitted.
        wider: From `widened`.
        key: A typed key.

    Raises:
        ValueError: If a prior is one distribution over groups, not one for each, or improper.
    """
    values, count = named_latents(draw), 0

    @relaxed()
    def choose(prior: Prior, value):
        nonlocal count
        del value
        count += 1
        old = values[prior.name]
        if jnp.shape(old) == prior.shape:
            return old
        batch = len(prior.shape) - len(prior.value_prior.event_shape)
        grown = [i for i, n in enumerate(prior.shape) if n != jnp.shape(old)[i]]
        if any(i >= batch for i in grown):
            raise ValueError(
                f"New groups of latent `{prior.name}` cannot be drawn: its prior "
                f"{type(prior.value_prior).__name__} is one distribution over all groups, not "
                "one for each given the others. Write `predict_given` in the model."
            )
        try:
            new = jnp.asarray(prior.value_prior.sample(jr.fold_in(key, count)))
        except NotImplementedError as error:
            raise ValueError(
                f"The prior of latent `{prior.name}` is improper: it has no draws for new "
                "groups."
            ) from error
        return new.at[tuple(slice(n) for n in jnp.shape(old))].set(old)

    return walk(wider, choose)
