"""Precision: float32 as JAX has it, float64 by one call; types that libraries may mix."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._results import InferenceWarning

RESOLUTION = 0.01  # of a standard deviation: what rounding may move a number by
TIES = 0.1  # share of distinct whole numbers that rounding makes equal


def enable_x64(enable: bool = True) -> None:
    """Use float64 from here on (or float32 again).

    Call it before making data and keys: arrays made earlier keep their type.

    Args:
        enable: Whether to use float64.
    """
    jax.config.update("jax_enable_x64", enable)


@contextlib.contextmanager
def relaxed() -> Iterator[None]:
    """Let a library mix types and ranks, whatever `jax_numpy_dtype_promotion` says.

    Around calls of libraries that strict promotion would make fail; never around our own
    arithmetic.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def check_resolution(array: Any, where: str) -> None:
    """Raise `ValueError` if numbers differ by less than the present precision can tell.

    In float32 a day written as 20240101.5 is one of two numbers, and seconds since 1970 are
    steps of 128. Columns (all but the first axis) are looked at one by one.

    Args:
        array: Real numbers, before they are converted.
        where: Their name for the message.
    """
    array = np.asarray(array)
    if array.ndim == 0 or len(array) < 2 or jnp.result_type(float) != jnp.float32:
        return
    columns = array.reshape(len(array), -1).astype(np.float64)
    largest, width = np.abs(columns).max(axis=0), np.ptp(columns, axis=0)
    own = {"f": 1e-12 if array.itemsize > 4 else 1e-6}.get(array.dtype.kind, 0.0)
    varies = np.isfinite(largest) & (width > own * largest)  # and not by its own rounding
    columns, largest = columns[:, varies], largest[varies]
    deviation = columns.std(axis=0)
    step = np.spacing(largest.astype(np.float32)).astype(np.float64)
    coarse = step / 2 > RESOLUTION * deviation
    # Of whole numbers (times, counts) the differences count, whatever their spread.
    whole = (step > 1) & (columns % 1 == 0).all(axis=0)
    for i in np.flatnonzero(~coarse & (step > 1)):
        distinct = np.unique(columns[:, i])
        rounded = distinct.astype(np.float32)
        if whole[i]:
            coarse[i] = len(np.unique(rounded)) < (1 - TIES) * len(distinct)
        if (np.diff(columns[:, i]) >= 0).all():  # as times are, whose steps count
            steps = np.diff(distinct)
            error = np.diff(rounded.astype(np.float64)) - steps
            coarse[i] |= np.sqrt(np.mean(error**2)) > RESOLUTION * np.median(steps)
    if coarse.any():
        i = int(np.flatnonzero(coarse)[0])
        raise ValueError(
            f"{where} has numbers up to {largest[i]:.10g} with a standard deviation of "
            f"{deviation[i]:.3g}, which float32 cannot tell apart: its step is {step[i]:.3g} "
            "there. Subtract a constant (an origin, the mean), or call `whence.enable_x64()`."
        )


def warn_of_counts(counts: Any, name: str, stacklevel: int) -> None:
    """Warn if float32 cannot hold the log probability of counts to a nat.

    Terms of a count `y` are about `y log y` and cancel, and each is rounded.

    Args:
        counts: Observed values of a discrete distribution; not traced.
        name: Of the observed variable, for the message.
        stacklevel: As `warnings.warn` counts, from the caller.
    """
    if jnp.result_type(float) != jnp.float32:
        return
    counts = np.abs(np.asarray(counts, np.float64))
    steps = np.spacing((counts * np.log1p(counts)).astype(np.float32)).astype(np.float64)
    error = float(np.sqrt((steps**2).sum() / 6))  # of two roundings, each uniform
    if error > 1:
        warnings.warn(
            f"Log probabilities of {name!r}, counts up to {counts.max():.3g}, are off by about "
            f"{error:.2g} nats in float32, so that engines cannot tell good draws from bad. "
            "Call `whence.enable_x64()`, or take a normal distribution of scaled counts.",
            InferenceWarning,
            stacklevel=stacklevel + 1,
        )
