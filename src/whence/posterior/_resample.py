"""Equally weighted draws of a posterior."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.random as jr
import numpy as np

from ..core._types import PRNGKey

if TYPE_CHECKING:
    from ._posterior import Posterior


def resampled(posterior: "Posterior", num_draws: int, key: PRNGKey) -> "Posterior":
    """Return `num_draws` draws, in order, by systematic resampling; see `resample`."""
    if num_draws < 1:
        raise ValueError(f"`num_draws` must be at least 1; got {num_draws}.")
    total = posterior.num_chains * posterior.num_draws
    log_weights = posterior.log_weights
    log_weights = np.zeros(total) if log_weights is None else log_weights.ravel()
    cumulative = np.cumsum(np.exp(log_weights - log_weights.max()))
    offset = float(jr.uniform(key))
    points = (np.arange(num_draws) + offset) / num_draws * cumulative[-1]
    chosen = np.minimum(np.searchsorted(cumulative, points), total - 1)
    take = lambda tree: jax.tree.map(
        lambda x: x.reshape(total, *x.shape[2:])[chosen][None], tree
    )
    sample = dataclasses.replace(
        posterior.sample,
        positions=take(posterior.sample.positions),
        stats=take(posterior.stats),
        # Copies beside each other make a chain that moves slowly: what it is worth is its ESS.
        method=posterior.sample.method if posterior.log_weights is None else "mcmc",
        log_weights=None,
        warmup_positions=None,
        warmup_stats=None,
    )
    variables = None if posterior._variables is None else take(posterior._variables)
    return posterior._like(sample, variables)
