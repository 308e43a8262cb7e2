"""A check, before minibatches are used, that the likelihood is a product over rows."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ._cache import compiled
from ._stream import Streamed
from ._target import AbstractDataTarget, AbstractTarget, local_names

_FEW = 16  # rows looked at, at least


def check_rows(target: AbstractTarget, batch_size: int | None) -> None:
    """Compare the log likelihood of some rows with those rows of the whole.

    A time series, or a model with one latent per row that is not declared local, has a log
    likelihood with one entry per row that is no product over rows: a minibatch of it means
    something else, and would give wrong draws without any sign of it. The prior of local
    latents must be a product over rows too.

    Args:
        target: The target.
        batch_size: Rows per batch; None means that no batches are made, and nothing is done.

    Raises:
        ValueError: If they differ, or if the likelihood does not accept some of the rows.
    """
    if batch_size is None or not isinstance(target, AbstractDataTarget):
        return
    if isinstance(target, Streamed):
        target = target.at_hand()
        # Not all of what is at hand, if that is more than one.
        batch_size = max(min(batch_size, target.num_data or 0) - 1, 1)
    number = target.num_data
    if number is None:
        return  # refused elsewhere, in other words
    rng, rows = np.random.default_rng(0), np.zeros(0, int)
    for i in range(2):
        key = jr.key(i)
        batches = _batches(np.r_[rows, rng.permutation(number)], batch_size, number)
        try:
            found = compiled(_both, target, key, batches).call(target, key, batches)
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"`batch_size` needs a likelihood that accepts some of the {number} data rows, "
                f"but it fails on {batch_size} of them ({str(error).splitlines()[0]}). A model "
                "with one latent per row declares it with `local=True`; a prior or likelihood "
                "that couples rows cannot be minibatched: use `batch_size=None`."
            ) from error
        (shared, whole), (each_shared, parts) = jax.tree.map(np.asarray, found)
        expected = whole[batches]
        if parts.shape != expected.shape or not (
            _agree(expected, parts) and _agree(np.broadcast_to(shared, len(parts)), each_shared)
        ):
            raise ValueError(
                "`batch_size` needs a likelihood (and a prior of local latents) that is a "
                "product over data rows, but the log density of a row, or what all rows share, "
                "depends on which other rows are in the batch (as in a time series). Use "
                "`batch_size=None`."
            )
        # Rows of the same kind have the same density: one of each, for a coupling that few
        # rows show, as of counts that are mostly zero.
        rows = np.unique(whole, return_index=True)[1]
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), batches.size)).astype(int)]


def _batches(rows: np.ndarray, size: int, number: int) -> np.ndarray:
    """Return batches of the first of these row numbers, in no order that data have."""
    order = np.array(list(dict.fromkeys(rows.tolist())), np.int32)
    if size >= number:  # of half of them, repeated: a mean over all does not see their order
        order = order[: -(-number // 2)]
    return np.resize(order, (-(-_FEW // size), size))


def _agree(whole: np.ndarray, part: np.ndarray) -> bool:
    finite = np.isfinite(whole)
    if not np.array_equal(finite, np.isfinite(part)):
        return False
    # Rounding differs between batch shapes; a wrong row differs by far more.
    tolerance = 1e-3 if part.dtype == np.float32 else 1e-6
    whole, part = whole[finite], part[finite]
    return bool(np.all(np.abs(whole - part) <= tolerance * (1 + np.abs(whole))))


def _both(target: Any, key, batches) -> tuple[Any, Any]:
    """Return log densities that all rows share and of each row: given all, and by batch."""
    position = jax.tree.map(lambda x: 0.1 * x, target.init(key=key))
    if local_names(target):
        at = lambda rows: target.log_joint_rows(target.at_rows(position, rows), rows)
        return at(jnp.arange(target.num_data, dtype=jnp.int32)), jax.lax.map(at, batches)
    zero = jnp.zeros(())
    parts = jax.lax.map(lambda rows: target.log_likelihood(position, rows), batches)
    return (zero, target.log_likelihood(position)), (jnp.zeros(len(batches)), parts)
