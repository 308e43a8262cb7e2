"""Equally weighted draws of weighted ones."""

import dataclasses
from collections.abc import Callable

import jax
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from ..core._convert import whole
from ..core._engine import Sample
from ..core._types import PRNGKey
from ..diagnostics._diagnose import CHAINS


def resampled(
    sample: Sample, num_draws: int, key: PRNGKey
) -> tuple[Sample, Callable[[PyTree], PyTree]]:
    """Return `num_draws` draws, in order, by systematic resampling.

    They make one chain, or as many as there are Markov chains, each of its own draws, if
    these have the same weight and share the number without a rest.

    Returns:
        The sample, and a function that takes the same draws from other arrays.
    """
    num_draws = whole("num_draws", least=1)(num_draws)
    lead = jax.tree.leaves(sample.positions)[0].shape[:2]
    total = lead[0] * lead[1]
    is_plain = sample.log_weights is None
    log_weights = np.zeros(total) if is_plain else np.asarray(sample.log_weights).ravel()
    cumulative = np.cumsum(np.exp(log_weights - log_weights.max()))
    offset = float(jr.uniform(key))
    points = (np.arange(num_draws) + offset) / num_draws * cumulative[-1]
    chosen = np.minimum(np.searchsorted(cumulative, points), total - 1)
    by_chain = chosen.reshape(lead[0], -1) if num_draws % lead[0] == 0 else chosen[None]
    if (by_chain // lead[1] != np.arange(len(by_chain))[:, None]).any():
        by_chain = chosen[None]
    take = lambda tree: jax.tree.map(lambda x: x.reshape(total, *x.shape[2:])[by_chain], tree)
    new = dataclasses.replace(
        sample,
        positions=take(sample.positions),
        stats=take(sample.stats),
        # Copies beside each other make a chain that moves slowly: what it is worth is its ESS.
        method=sample.method if is_plain or sample.method in CHAINS else "mcmc",
        log_weights=None,
        warmup_positions=None,
        warmup_stats=None,
    )
    return new, take
