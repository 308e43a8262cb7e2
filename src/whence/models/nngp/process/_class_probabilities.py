"""Inducing inputs from labelled data, and class probabilities from a posterior."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ....core._batches import in_batches
from ....core._convert import whole
from ....core._key import seeded
from ....core._types import AnyArray, PRNGKey
from ....posterior._posterior import Posterior

_ROWS = 256  # rows at a time, for all draws


@seeded
def stratified_rows(labels: AnyArray, size: int, *, key: PRNGKey) -> np.ndarray:
    """Choose rows at random, from each class as equally many as it has.

    Args:
        labels: Classes, shape `(row,)`.
        size: How many rows to choose.
        key: Random key.

    Returns:
        Row numbers, ascending.

    Raises:
        ValueError: If `size` is not from 1 to the number of rows.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"`labels` must have shape (row,); got {labels.shape}.")
    size = whole("size", least=1, most=len(labels))(size)
    order = np.asarray(jr.permutation(key, len(labels)))
    # The first of every class, then the second of every class, and so on.
    turn = np.empty(len(labels), int)
    for one in np.unique(labels):
        mine = order[labels[order] == one]
        turn[mine] = np.arange(len(mine))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:size])


@seeded
def class_log_probs(
    posterior: Posterior, x: AnyArray, *, key: PRNGKey
) -> Float[np.ndarray, "row class"]:
    """Return log posterior predictive probabilities of the classes, in nats.

    The log of the mean over draws of `softmax(f)`, one scale per draw for all classes and
    rows. The most probable class is `argmax` of it.

    Args:
        posterior: Of a `Classification`.
        x: Inputs, shape `(row, ...)`.
        key: Random key, for f given the inducing values.
    """
    num_draws = posterior.num_chains * posterior.num_draws
    flat = lambda leaf: jnp.asarray(leaf).reshape(num_draws, *leaf.shape[2:])
    positions = jax.tree.map(flat, posterior.sample.positions)
    weights = posterior.log_weights
    weights = np.zeros(num_draws) if weights is None else np.asarray(weights).ravel()
    weights = jax.nn.log_softmax(jnp.asarray(weights))
    target, x = posterior.target, np.asarray(x)
    parts = []
    for number, start in enumerate(range(0, len(x), _ROWS)):
        keys = jr.split(jr.fold_in(key, number), num_draws)
        some = x[start : start + _ROWS]
        parts.append(np.asarray(_log_mean_softmax(target, positions, weights, some, keys)))
    return np.concatenate(parts)


@eqx.filter_jit
def _log_mean_softmax(target, positions, log_weights, x, keys) -> Array:
    def one(each):
        position, key = each
        labels = target.constrain(position).likelihood(x)
        white = jr.normal(key, labels.loc.shape, labels.loc.dtype)
        return jax.nn.log_softmax(labels.loc + labels.deviation[:, None] * white)

    # In batches of draws: what they share (the kernels, unless trained) is computed once each.
    values = in_batches(one, (positions, keys), 100)
    return jax.nn.logsumexp(values + log_weights[:, None, None], axis=0)
