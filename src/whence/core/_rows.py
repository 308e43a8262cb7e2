"""A check, before minibatches are used, that the likelihood is a product over rows."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from ._cache import compiled
from ._stream import Streamed
from ._target import AbstractDataTarget, AbstractTarget, local_names


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
    if number is None or batch_size > number:
        return  # refused elsewhere, in other words
    key = jr.key(0)
    # In any order, as batches have them: a batch of all rows is one of these.
    rows = np.random.default_rng(0).choice(number, batch_size, replace=False).astype(np.int32)
    try:
        whole, part = compiled(_both, target, key, rows).call(target, key, rows)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"`batch_size` needs a likelihood that accepts some of the {number} data rows, "
            f"but it fails on {batch_size} of them ({str(error).splitlines()[0]}). A model "
            "with one latent per row declares it with `local=True`; a prior or likelihood that "
            "couples rows cannot be minibatched: use `batch_size=None`."
        ) from error
    whole, part = np.asarray(whole)[rows], np.asarray(part)
    if part.shape != whole.shape or not _agree(whole, part):
        raise ValueError(
            "`batch_size` needs a likelihood (and a prior of local latents) that is a product "
            "over data rows, but the log density of a row depends on which other rows are in "
            "the batch (as in a time series). Use `batch_size=None`."
        )


def _agree(whole: np.ndarray, part: np.ndarray) -> bool:
    finite = np.isfinite(whole) & np.isfinite(part)
    # Rounding differs between batch shapes; a wrong row differs by far more.
    tolerance = 1e-3 if part.dtype == np.float32 else 1e-6
    return bool(np.all(np.abs(whole - part)[finite] <= tolerance * (1 + np.abs(whole[finite]))))


def _both(target: Any, key, rows) -> tuple[Array, Array]:
    position = jax.tree.map(lambda x: 0.1 * x, target.init(key=key))
    if local_names(target):
        every = jnp.arange(target.num_data, dtype=jnp.int32)
        at = lambda some: target.log_joint_rows(target.at_rows(position, some), some)[1]
        return at(every), at(rows)
    return target.log_likelihood(position), target.log_likelihood(position, rows)
