"""The two-filter smoother: a filter forward in time, and one backward that carries information.

With `b_t(x)` the density of the data from time t on given the state x there,

    b_t(x) = exp(log_potential_t(x)) m_t(x),    m_t(x) = int f(x' | x) b_(t+1)(x') dx',

the smoothed law at t is that of the filter times `m_t`. The backward filter keeps points of a
law `r_t` of its own, near the filter's, and takes the integrals over them:
`m_t(x) = mean_j f(x_j | x) b_(t+1)(x_j) / r_(t+1)(x_j)`.

References:
    Briers, Doucet and Maskell (2010), doi:10.1007/s10463-009-0236-2.
    Fearnhead, Wyncoll and Tawn (2010), doi:10.1093/biomet/asq013.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from ...core._feynman_kac import AbstractSequenceTarget
from ...core._types import Draw, PRNGKey
from ._filter import History
from ._metric import covariance_factor

_WIDER = 1.5  # the scale of `r_t` over that of the filter: its tails must not be lighter
_ROWS = 256  # states at a time, each beside all points


def two_filter(
    sequence: AbstractSequenceTarget, draw: Draw, history: History, *, key: PRNGKey
) -> Float[Array, "time particle"]:
    """Return log weights of the filter's particles given all data, normalised.

    Raises:
        ValueError: If states are not one array of real numbers.
    """
    states, dtype = history.state, history.log_weights.dtype
    if not isinstance(states, jax.Array) or not jnp.issubdtype(states.dtype, jnp.floating):
        raise ValueError(
            '`smoother="two-filter"` needs continuous states; use "backward" for others.'
        )
    length, num = history.log_weights.shape
    shape = states.shape[2:]

    def back(after, at):
        points, log_mass = after
        states, log_weights, time, key = at
        datum = sequence.datum(jnp.minimum(time + 1, length - 1))

        def message(x):
            way = lambda new: sequence.log_transition(draw, x, new, time + 1, datum)
            ways = jax.vmap(way)(points).astype(dtype) + log_mass
            return logsumexp(jnp.where(jnp.isnan(ways), -jnp.inf, ways))

        def messages(x):
            found = jax.lax.map(message, x, batch_size=_ROWS)
            return jnp.where(time + 1 < length, found, jnp.zeros_like(found))

        flat = states.reshape(num, -1)
        factor = covariance_factor(flat, log_weights, True)
        noise = jr.normal(key, flat.shape, flat.dtype)
        new = (factor.centre[None] + _WIDER * factor.colour(noise)).reshape(num, *shape)
        log_law = -0.5 * jnp.sum(noise**2, axis=1)  # up to a constant, the same for all
        here = sequence.datum(time)
        seen = jax.vmap(lambda x: sequence.log_potential(draw, x, time, here))(new)
        own = seen.astype(dtype) + messages(new) - log_law.astype(dtype)
        own = jnp.where(jnp.isnan(own), -jnp.inf, own)
        smoothed = log_weights + messages(states)
        return (new, own - logsumexp(own)), smoothed - logsumexp(smoothed)

    times = jnp.arange(length, dtype=jnp.int32)
    inputs = (states, history.log_weights, times, jr.split(key, length))
    first = (states[-1], history.log_weights[-1])  # of no meaning: nothing comes after
    return jax.lax.scan(back, first, inputs, reverse=True)[1]
