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
from ..diagnostics._weights import smoothed


def resampled(
    sample: Sample, num_draws: int, key: PRNGKey, importance: bool = False
) -> tuple[Sample, Callable[[PyTree], PyTree]]:
    """Return `num_draws` draws, in order, by systematic resampling.

    They make one chain, or as many as there are Markov chains, each of its own draws, if
    these have the same weight and share the number without a rest.

    With `importance` the weights are those of the draws of an approximation: importance ratios
    to the target, smoothed. Draws without a ratio, after those with one, are left out.

    Returns:
        The sample, and a function that takes the same draws from other arrays.
    """
    num_draws = whole("num_draws", least=1)(num_draws)
    lead = jax.tree.leaves(sample.positions)[0].shape[:2]
    is_plain = sample.log_weights is None and not importance
    log_weights = np.zeros(lead) if is_plain else np.asarray(sample.log_weights)
    if importance:
        log_weights = _ratios(sample)
        lead = lead[0], log_weights.shape[1]
    total = lead[0] * lead[1]
    log_weights = log_weights.ravel()
    cumulative = np.cumsum(np.exp(log_weights - log_weights.max()))
    offset = float(jr.uniform(key))
    points = (np.arange(num_draws) + offset) / num_draws * cumulative[-1]
    chosen = np.minimum(np.searchsorted(cumulative, points), total - 1)
    by_chain = chosen.reshape(lead[0], -1) if num_draws % lead[0] == 0 else chosen[None]
    if (by_chain // lead[1] != np.arange(len(by_chain))[:, None]).any():
        by_chain = chosen[None]
    flat = lambda x: x[:, : lead[1]].reshape(total, *x.shape[2:])
    take = lambda tree: jax.tree.map(lambda x: flat(x)[by_chain], tree)
    new = dataclasses.replace(
        sample,
        positions=take(sample.positions),
        stats=take(sample.stats),
        # Copies beside each other make a chain that moves slowly: what it is worth is its ESS.
        method=sample.method if is_plain or sample.method in CHAINS else "mcmc",
        log_weights=None,
        record=None if importance else sample.record,
        warmup_positions=None,
        warmup_stats=None,
    )
    return new, take


def _ratios(sample: Sample) -> np.ndarray:
    """Return smoothed log importance ratios of the first draws, `(1, checked)`."""
    found = getattr(sample.record, "log_weights_is", None)
    if found is None or not np.size(found) or sample.log_weights is not None:
        raise ValueError(
            "`importance` needs equally weighted draws of an approximation with importance "
            "ratios, as `BBVI` (with `checked`) and `Laplace` make; this posterior has none."
        )
    return smoothed(np.reshape(found, (1, -1)))
