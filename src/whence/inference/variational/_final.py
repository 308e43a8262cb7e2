"""Draws from a fitted family, and their importance ratios as far as these can be afforded.

A ratio needs the log density on all data. Its cost is that of one pass over the rows, which
for many rows is that of hundreds of updates; so the draws whose ratios are computed are
bounded, and so is the memory: whatever is evaluated at once is a block of draws and rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ...core._batches import in_batches, sum_in_batches
from ...core._cache import remembering
from ...core._flat import flat_view
from ...core._stream import stream_of
from ...core._target import AbstractDataTarget, AbstractTarget
from ...core._types import Position, PRNGKey
from ._batch import Batch, every_row
from ._family import AbstractFamily
from ._flat import layout_of, on_flat
from ._local import has_rows
from ._objective import AbstractObjective
from ._terms import Terms, as_terms, log_prob_terms

# Likelihoods of single rows that are evaluated unless more are asked for: for a logistic
# regression with 25 covariates about 0.5 s on two free cores, less than the fit takes.
ROWS_BUDGET = 200_000_000
FEWEST_CHECKED = 100  # the limit of k-hat for fewer is below 0.5: Vehtari et al. (2024)
BLOCK = 2**20  # draws times rows evaluated at once: temporary arrays of 4 or 8 MB


class Drawn(NamedTuple):
    """Draws, and of the first of them what was computed on all data.

    Attributes:
        positions: All draws, with a leading axis.
        log_density: Of the first, in nats.
        log_weights: Log of target over family, of the same, in nats.
    """

    positions: Position
    log_density: Float[Array, " checked"]
    log_weights: Float[Array, " checked"]


def num_checked(target: AbstractTarget, draws: int, wanted: int | None) -> int:
    """Return of how many draws the importance ratios are computed."""
    if stream_of(target) is not None:
        return 0
    if wanted is not None:
        return min(wanted, draws)
    rows = _num_rows(target)
    affordable = draws if rows is None else min(draws, ROWS_BUDGET // max(rows, 1))
    return affordable if affordable >= min(FEWEST_CHECKED, draws) else 0


@remembering
def draw(
    given: AbstractFamily,
    params: Any,
    target: AbstractTarget,
    sizes: tuple[int, int],
    by_rows: bool,
    key: PRNGKey,
) -> Drawn:
    """Draw from a fitted family, as the user gave it."""
    location, unravel = flat_view(target)
    family, params = Batch.of(target, given, params, None)[2:4]
    num_draws, checked = sizes
    noise = family.noise(location, num_draws, key=key)
    flat = jax.vmap(lambda n: family.transform(params, n))(noise)
    first = jax.tree.map(lambda x: x[:checked], noise)
    evaluate = _by_rows if by_rows else _by_draws
    log_density = evaluate(family, target, flat[:checked]) if checked else flat[:0, 0]
    log_prob = jax.vmap(lambda n: family.log_prob(params, n))(first)
    return Drawn(jax.vmap(unravel)(flat), log_density, log_density - log_prob)


def log_weights(batch: Batch, noise: Any) -> Terms:
    """Return log weights of draws made of noise."""
    positions = jax.vmap(lambda n: batch.family.transform(batch.params, n))(noise)
    terms = as_terms(batch.log_densities(positions))
    one = lambda n: log_prob_terms(batch.family, batch.params, n, terms)
    return jax.tree.map(jnp.subtract, terms, jax.vmap(one)(noise))


@remembering
def bound_of(
    given: AbstractFamily,
    params: Any,
    target: AbstractTarget,
    objective: AbstractObjective,
    samples: int,
    key: PRNGKey,
) -> Float[Array, "..."]:
    """Return an objective of a fitted family, of each row if parts of it are by row."""
    value = lambda w: objective.value(objective.arrange(w))

    def weights(rows):
        batch = Batch.of(target, given, params, rows)
        own = key if rows is None else jr.fold_in(key, rows[0])
        noise = batch.family.noise(batch.view[0], samples, key=own)
        return log_weights(batch, noise)

    if not has_rows(given):
        return value(weights(None).shared)
    each = lambda row: jax.vmap(value, in_axes=1)(weights(row[None]).rows)[0]
    size = max(BLOCK // (samples * 1_000), 1)
    return in_batches(each, every_row(target), size)


def _on_flat(function, family, target, example):
    shared = family.shared(layout_of(target))
    return on_flat(function, shared, flat_view(target)[1], example)


def _num_rows(target: AbstractTarget) -> int | None:
    return target.num_data if isinstance(target, AbstractDataTarget) else None


def _by_draws(family, target, flat) -> Float[Array, " checked"]:
    """Log densities, some draws at a time."""
    size = int(np.clip(BLOCK // (_num_rows(target) or 1), 1, 100))
    one = _on_flat(target.log_density, family, target, flat[0])
    return in_batches(one, flat, size)


def _by_rows(family, target, flat) -> Float[Array, " checked"]:
    """Log densities, some rows at a time for all draws: each row is read once."""
    number = _num_rows(target)
    assert number is not None
    size = int(np.clip(BLOCK // len(flat), 1, number))
    at = lambda function: jax.vmap(_on_flat(function, family, target, flat[0]))

    def terms(rows, inside):
        summed = lambda x: jnp.where(inside, target.log_likelihood(x, rows), 0).sum()
        return at(summed)(flat)

    return sum_in_batches(terms, number, size, at(target.log_prior)(flat))
