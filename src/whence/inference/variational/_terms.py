"""Log densities of several draws by what they belong to: all data rows, or one of them.

With local latents a log weight is a term that all rows share and a term of each row in the
batch, which stands for `scale` rows. A bound that is not linear is one of each row's terms.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._factors import Factors
from ._family import AbstractFamily, Noise, Vector
from ._local import AbstractByRow, factors_of
from ._objective import AbstractObjective


class Terms(eqx.Module):
    """A quantity of several draws.

    Attributes:
        shared: What belongs to all data rows.
        rows: What belongs to each row of the batch; none without local latents.
        scale: How many rows each of these stands for.
    """

    shared: Float[Array, "*sample"]
    rows: Float[Array, "*sample row"]
    scale: float = eqx.field(static=True, default=1.0)

    @property
    def total(self) -> Float[Array, "*sample"]:
        """Both together."""
        return self.shared + self.scale * jnp.sum(self.rows, axis=-1)


def as_terms(value: Any) -> Terms:
    """Return log densities as terms; plain ones are shared."""
    return value if isinstance(value, Terms) else Terms(value, value[..., None][..., :0])


def evaluate(objective: AbstractObjective, weights: Terms) -> Float[Array, ""]:
    """Return the objective of log weights, in nats."""
    value = lambda w: objective.value(objective.arrange(w))
    if not weights.rows.shape[1]:
        return value(weights.shared)
    each = jax.vmap(value, in_axes=1)(weights.rows)
    return jnp.mean(weights.shared) + weights.scale * jnp.sum(each)


def coefficients(
    function: Callable[[AbstractObjective, Array], Array],
    objective: AbstractObjective,
    weights: Terms,
) -> Terms:
    """Return what one of the `slopes` is of each term."""
    one = lambda w: function(objective, w)
    if not weights.rows.shape[1]:
        return Terms(one(weights.shared), weights.rows)
    # A bound that is not linear is one of rows, and what they share is the same for all draws.
    is_linear = objective.outer == 0
    shared = one(weights.total) if is_linear else jnp.ones_like(weights.shared)
    rows = weights.scale * jax.vmap(one, in_axes=1, out_axes=1)(weights.rows)
    return Terms(shared, rows, weights.scale)


def log_prob_terms(family: AbstractFamily, params: PyTree, noise: Noise, like: Terms) -> Terms:
    """Return the log density of one draw, in terms as `like` has them."""
    if not like.rows.shape[-1]:
        return Terms(family.log_prob(params, noise), like.rows[0], like.scale)
    shared, rows = jnp.zeros((), like.shared.dtype), jnp.zeros_like(like.rows[0])
    for part, own, its in factors_of(family, params, noise):
        if isinstance(part, AbstractByRow):
            rows = rows + part.log_prob_parts(own, its)
        else:
            shared = shared + part.log_prob(own, its)
    return Terms(shared, rows, like.scale)


def entropy_total(family: AbstractFamily, params: PyTree, scale: float) -> Array:
    """Return the entropy, that of the rows of a batch scaled up."""
    found = [
        part.entropy(own) * (scale if isinstance(part, AbstractByRow) else 1)
        for part, own in factors_of(family, params)
    ]
    return jnp.sum(jnp.stack(found))


def scaled_score(
    family: AbstractFamily, params: PyTree, noise: Noise, factors: Terms
) -> Vector:
    """Return the score of one draw, each coordinate times the factor of its term."""

    def one(part, own, its):
        score = part.score(own, its)
        if isinstance(part, AbstractByRow) and factors.rows.size:
            return part.times_rows(score, factors.rows)
        return factors.shared * score

    return _join(one, family, params, noise)


def _join(function, family, params, noise) -> Vector:
    if not isinstance(family, Factors):
        return function(family, params, noise)
    each = zip(family.families, params, noise)
    return family.join([_join(function, *part) for part in each])
