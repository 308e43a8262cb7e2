"""What a posterior computes for each draw: functions of `(target, draw)`, and their map."""

import jax
import jax.random as jr
from jaxtyping import Array

from ..core._target import AbstractDescribedTarget, DependentData
from ..core._tree import named_leaves


def map_draws(function, target, batched, rest):
    """Map `function(target, draw, *rest)` over leading axes `(chain, draw)`."""
    # One draw at a time inside a batch of draws keeps memory bounded and still vectorises.
    one = lambda b: function(target, b, *rest)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batched)
    lead = jax.tree.leaves(batched)[0].shape[:2]
    out = jax.lax.map(one, flat, batch_size=min(1000, max(1, lead[0] * lead[1])))
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), out)


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


def pointwise(target, position):
    """Return the pointwise log likelihood, in nats, by observed variable."""
    draw = target.constrain(position)
    if isinstance(target, DependentData):
        return target.pointwise_given_rest(draw)
    return target.pointwise(draw)


def predict(target, batched, inputs):
    """Draw observed variables; `batched` is a position and the data of a key."""
    position, key = batched
    draw = target.constrain(position)
    method = target.predict_given if isinstance(target, DependentData) else target.predict
    return method(draw, inputs, key=jr.wrap_key_data(key))
