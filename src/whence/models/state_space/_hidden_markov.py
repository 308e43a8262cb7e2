"""Exact inference for states of a finite set: forward, backward, paths. All in logs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import logsumexp
from jaxtyping import Array

from ...core._types import PRNGKey, Scalar
from ..linear_gaussian._kalman import long_sum


class Chain(NamedTuple):
    """A hidden Markov chain and its data; log probabilities in nats."""

    initial: Array  # `(state,)`
    # To each time but the first, from row to column, `(time - 1, state, state)`.
    transition: Array
    emission: Array  # log density of the data at each time in each state, `(time, state)`


def _scaled(logs: Array) -> tuple[Array, Array]:
    """Return logs less their largest, over the last two axes, and what was taken off.

    So that a long chain keeps its digits in float32.
    """
    most = jax.lax.stop_gradient(jnp.max(logs, axis=(-2, -1), keepdims=True))
    most = jnp.where(jnp.isfinite(most), most, jnp.zeros_like(most))
    return logs - most, most[..., 0, 0]


def _product(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the logarithm of a product of matrices, scaled; leading axes are batched."""
    product = logsumexp(a[0][..., :, :, None] + b[0][..., None, :, :], axis=-2)
    scaled, most = _scaled(product)
    return scaled, a[1] + b[1] + most


def forward(chain: Chain, parallel: bool = False) -> tuple[Array, Scalar]:
    """Return log probabilities of each state given the data so far, and the log evidence.

    Returns:
        `(time, state)`, and a number in nats.

    References:
        Rabiner (1989), doi:10.1109/5.18626.
        Särkkä and García-Fernández (2021), doi:10.1109/TAC.2020.2976316.
    """
    first = chain.initial + chain.emission[0]
    if parallel and len(chain.transition):
        links = _scaled(chain.transition + chain.emission[1:, None, :])
        joined, scales = jax.lax.associative_scan(_product, links)
        rest = logsumexp(first[None, :, None] + joined, axis=1)
        total = logsumexp(rest[-1]) + scales[-1]
        return normalised(jnp.concatenate([first[None], rest])), total

    def step(alpha, link):
        transition, emission = link
        alpha = logsumexp(alpha[:, None] + transition, axis=0) + emission
        alpha, gain = normalised(alpha), logsumexp(alpha)
        return alpha, (alpha, gain)

    begun = normalised(first)
    _, (rest, gains) = jax.lax.scan(step, begun, (chain.transition, chain.emission[1:]))
    return jnp.concatenate([begun[None], rest]), logsumexp(first) + long_sum(gains)


def smooth(chain: Chain, alpha: Array) -> Array:
    """Return log probabilities of each state given all data, `(time, state)`."""

    def back(beta, link):
        transition, emission = link
        beta = normalised(logsumexp(transition + (emission + beta)[None, :], axis=1))
        return beta, beta

    last = jnp.zeros_like(chain.initial)
    links = (chain.transition, chain.emission[1:])
    _, beta = jax.lax.scan(back, last, links, reverse=True)
    return normalised(alpha + jnp.concatenate([beta, last[None]]))


def normalised(alpha: Array) -> Array:
    """Return log probabilities, from logs of numbers proportional to them."""
    total = logsumexp(alpha, axis=-1, keepdims=True)
    return alpha - jnp.where(jnp.isfinite(total), total, jnp.zeros_like(total))


def sample_path(chain: Chain, alpha: Array, *, key: PRNGKey) -> Array:
    """Return one path of states given all data, `(time,)`."""
    keys = jr.split(key, len(alpha))
    last = jr.categorical(keys[-1], alpha[-1])

    def back(after, link):
        alpha, transition, key = link
        state = jr.categorical(key, alpha + transition[:, after])
        return state, state

    _, before = jax.lax.scan(
        back, last, (alpha[:-1], chain.transition, keys[:-1]), reverse=True
    )
    return jnp.concatenate([before, last[None]])


def density_given_rest(chain: Chain, smoothed: Array) -> Array:
    """Return the log density of each time's data given all others, `(time,)`.

    `1 / p(y_t | rest)` is the mean of `1 / p(y_t | x_t)` over the states given all data.
    """
    return -logsumexp(smoothed - chain.emission, axis=1)
