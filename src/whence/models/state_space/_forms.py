"""Which state-space models are linear and Gaussian, or finite, and what they are then.

All functions take a model with values. Recognition is by the structure of the program: an
affine function written as another (`x**1`) counts as another.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from ...core._dtype import relaxed
from .._seen import plain
from ..linear_gaussian._square_root import Factored
from ..linear_gaussian._structure import depends
from ._hidden_markov import Chain
from ._parts import emission_terms, law


def gaussian(found: Any) -> tuple[Array, Array] | None:
    """Return mean and factor of the covariance, flat; None unless it is a normal law."""
    found, dtype = plain(found), jnp.result_type(float)
    with relaxed():
        if isinstance(found, dist.Normal):
            loc = jnp.broadcast_to(jnp.asarray(found.loc, dtype), found.shape()).ravel()
            scale = jnp.broadcast_to(jnp.asarray(found.scale, dtype), found.shape()).ravel()
            return loc, jnp.diag(scale)
        if isinstance(found, dist.MultivariateNormal) and not found.batch_shape:
            loc = jnp.broadcast_to(jnp.asarray(found.loc, dtype), found.event_shape)
            return loc, jnp.asarray(found.scale_tril, dtype)
    return None


def _values(found: Any) -> int | None:
    """Return the number of values of a categorical law of one number; None of others."""
    kinds = dist.CategoricalProbs | dist.CategoricalLogits
    if not isinstance(found, kinds) or found.batch_shape:
        return None
    return int(jnp.shape(found.probs)[-1])


def form_of(model: Any, inputs: Any) -> str:
    """Return `"linear"` (and Gaussian), `"finite"`, `"continuous"` or `"discrete"`."""
    first, t = law(model, "initial"), jnp.zeros((), jnp.int32)
    zero = jnp.zeros(first.shape(), jnp.result_type(float))
    count = _values(first)
    if count is not None:
        after = law(model, "transition", jnp.zeros((), jnp.int32), t, inputs)
        return "finite" if _values(after) == count else "discrete"
    if first.support is not None and first.support.is_discrete:
        return "discrete"
    if gaussian(first) is None:
        return "continuous"
    for name in ("transition", "emission"):
        found = law(model, name, zero, t, inputs)
        if isinstance(found, dict) or gaussian(found) is None:
            return "continuous"

        def parts(x, name=name):
            loc, root = gaussian(law(model, name, x, t, inputs))  # pyright: ignore
            return loc, root

        with relaxed():
            curved = depends(jax.jacfwd(lambda x: parts(x)[0]), zero)[0]
            uneven = depends(lambda x: parts(x)[1], zero)[0]
        if curved or uneven:
            return "continuous"
    return "linear"


def linear_system(model: Any, length: int, inputs: Any) -> Factored:
    """Return the system that a linear Gaussian model is."""
    first = law(model, "initial")
    mean, root = gaussian(first)  # pyright: ignore[reportGeneralTypeIssues]
    zero = jnp.zeros(first.shape(), mean.dtype)

    def affine(name, t, inputs):
        loc = lambda x: gaussian(law(model, name, x, t, inputs))[0]  # pyright: ignore
        with relaxed():
            matrix = jax.jacfwd(loc)(zero)
        at_zero, factor = gaussian(law(model, name, zero, t, inputs))  # pyright: ignore
        return matrix.reshape(len(at_zero), len(mean)), at_zero, factor

    times = jnp.arange(length, dtype=jnp.int32)
    later = jax.tree.map(lambda v: v[1:], (times, inputs))
    over = lambda name, at: jax.vmap(lambda t, i: affine(name, t, i))(*at)
    return Factored(mean, root, *over("transition", later), *over("emission", (times, inputs)))


def finite_chain(model: Any, y: Any, inputs: Any, observed: Any) -> Chain:
    """Return the chain that a model with finitely many states is, with its data."""
    first = law(model, "initial")
    dtype = jnp.result_type(float)
    states = jnp.arange(_values(first), dtype=jnp.int32)
    times = jnp.arange(len(jax.tree.leaves(y)[0]), dtype=jnp.int32)
    logs = lambda found: jnp.asarray(found.log_prob(states), dtype)

    def moves(t, inputs):
        return jax.vmap(lambda x: logs(law(model, "transition", x, t, inputs)))(states)

    def emits(y, seen, t, inputs):
        each = lambda x: jnp.sum(emission_terms(model, x, t, y, inputs, seen), dtype=dtype)
        return jax.vmap(each)(states)

    later = jax.tree.map(lambda v: v[1:], (times, inputs))
    with relaxed():
        initial = logs(first)
        return Chain(
            initial, jax.vmap(moves)(*later), jax.vmap(emits)(y, observed, times, inputs)
        )
