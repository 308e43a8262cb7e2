"""Draws of chains without a Metropolis test, held against the gradient of their target.

If `x` has density `p`, then `E[(m - x) d log p / dx] = 1` for every coordinate and every
constant `m`: integration by parts. Draws that are too wide meet too steep a gradient on their
way back. So the gradient at some draws says how wide they are in units of the target, and
sees the noise of minibatches as well as the bias of a step size, without a second run. It is
estimated from rows that are drawn anew: those of an update, if epochs are reshuffled, are not
independent of where the chain is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree

from ..core._batches import by_draw
from ..core._cache import remembering
from ..core._data import log_density_estimate
from ..core._flat import flat_draws
from ..core._stream import rows_at_hand, stream_of
from ..core._target import AbstractDataTarget, AbstractTarget
from ..core._types import Position, PRNGKey
from ..diagnostics import UnadjustedChains
from ..diagnostics._mcse import mcse

CHECKED = 200  # draws of all chains: variances to a tenth or better
SHARE = 0.1  # of the work of the run
NUMBERS = 20_000_000  # entries of all gradients together
BLOCK = 2**20  # draws times rows evaluated at once


class Looked(NamedTuple):
    """Some draws, and an estimate of the gradient at each.

    Attributes:
        draws: Flat positions, `(chain, draw, dim)`.
        gradients: Of the log density, the same shape.
        mean: Of all draws, `(dim,)`.
    """

    draws: np.ndarray
    gradients: np.ndarray
    mean: np.ndarray

    def inflation(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what `UnadjustedChains` holds."""
        product = (self.mean - self.draws) * self.gradients
        product = np.concatenate([product, product.mean(axis=2, keepdims=True)], axis=2)
        return product.mean(axis=(0, 1)), mcse(product).mean


def inflation(
    target: AbstractTarget,
    positions: Position,
    weights: np.ndarray,
    num_rows: int | None,
    *,
    key: PRNGKey,
) -> UnadjustedChains:
    """Measure how wide draws are; see `look_at`."""
    return UnadjustedChains(*look_at(target, positions, weights, num_rows, key=key).inflation())


def look_at(
    target: AbstractTarget,
    positions: Position,
    weights: np.ndarray,
    num_rows: int | None,
    *,
    key: PRNGKey,
) -> Looked:
    """Return some draws and the gradients there.

    Args:
        target: The target density.
        positions: Draws `(chain, draw, ...)`.
        weights: Of the draws, `(chain, draw)`, with a sum of 1.
        num_rows: Evaluations of the likelihood of one row that the run has made; None if each
            gradient was that of all data.
        key: A typed key.
    """
    chains, draws = weights.shape
    dim = sum(leaf[0, 0].size for leaf in jax.tree.leaves(positions))
    each = min(max(min(CHECKED, NUMBERS // max(dim, 1)) // chains, 4), draws)
    share = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)
    places = (np.arange(each) + 0.5) / each
    chosen = np.stack([np.minimum(np.searchsorted(c, places), draws - 1) for c in share])
    some = jax.tree.map(lambda x: x[np.arange(chains)[:, None], chosen], positions)
    mean = jax.tree.map(lambda x: np.tensordot(weights, x, 2)[None, None], positions)
    whole = target.num_data if isinstance(target, AbstractDataTarget) else None
    rows, stream = None, stream_of(target)
    if num_rows is not None and whole is not None and SHARE * num_rows < whole * chosen.size:
        rows = max(int(SHARE * num_rows / chosen.size), 1)
    if stream is not None:  # of which only some rows are at hand, or batches of one size
        rows = stream.batch or min(rows or stream.at_hand, stream.at_hand)
    at_once = int(np.clip(BLOCK // (rows or whole or 1), 1, 100))
    gradients = _gradients(target, some, rows, at_once, key)
    flat = lambda tree: flat_draws(tree, np.float64)
    return Looked(flat(some), flat(gradients), flat(mean)[0, 0])


@remembering
def _gradients(target, positions, rows: int | None, at_once: int, key):
    """Gradients of the log density, each by `rows` rows of its own (None: all)."""

    def one(pair):
        position, key = pair
        flat, form = ravel_pytree(position)
        some = None
        if rows is not None:
            some = jr.randint(key, (rows,), 0, rows_at_hand(target) or 0, jnp.int32)
        return form(jax.grad(lambda x: log_density_estimate(target, form(x), some))(flat))

    keys = jr.split(key, jax.tree.leaves(positions)[0].shape[:2])
    return by_draw(one, (positions, keys), at_once)
