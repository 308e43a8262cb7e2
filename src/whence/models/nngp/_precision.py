"""What single precision leaves of evidence and predictions; refused where that is too little.

A kernel matrix in floating point is that of `A + E`, with entries of E of about
`rounding = eps max(diag A)`. To first order, with `a = A^-1 y` and `w = A^-1 k`,

    y' A^-1 y moves by a'Ea,   k' A^-1 y by w'Ea,   k** - k' A^-1 k by w'Ew,

and as E is nearly random, these are about `rounding |a|^2`, `rounding |w| |a|`, and
`rounding |w|^2` (with 1 added to |w| for the rounding of k and k** themselves).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from ...core._types import AnyArray, Scalar

NATS, SHARE, DEVIATIONS = 0.5, 0.1, 0.25  # of evidence, of a deviation, of a location
_REMEDY = (
    "Use `whence.enable_x64()`; else scale the inputs to a spread near 1, or raise `noise`."
)


def is_single(dtype: Any) -> bool:
    """Whether numbers have fewer digits than float64."""
    return float(jnp.finfo(dtype).eps) > 1e-10


def check_rounding(name: str, value: AnyArray) -> None:
    """Refuse float64 numbers that float32 would not tell apart, where it is in use.

    Raises:
        ValueError: If a column's spread is within 1000 roundings of its largest number.
    """
    if isinstance(value, Tracer) or jnp.result_type(float) == jnp.float64:
        return
    given = np.asarray(value)
    if given.dtype != np.float64 and not np.issubdtype(given.dtype, np.integer):
        return
    columns = given.reshape(len(given), -1).astype(float)
    spread, largest = np.std(columns, axis=0), np.max(np.abs(columns), axis=0)
    lost = (spread > 0) & (spread < 1000 * np.finfo(np.float32).eps * largest)
    if lost.any():
        at = int(np.argmax(lost))
        raise ValueError(
            f"`{name}` must keep its digits in float32; column {at} has a spread of "
            f"{spread[at]:.3g} around numbers of {largest[at]:.6g}. Subtract its mean, or use "
            "`whence.enable_x64()`."
        )


def weights_of(tril: Array, white: Array) -> Array:
    """Return `L'^-1 white`."""
    return solve_triangular(tril, white, lower=True, trans=1)


def rounding_of(tril: Array) -> Scalar:
    """Return the size of one rounding of the matrix `L L'`."""
    return jnp.finfo(tril.dtype).eps * jnp.max(jnp.sum(tril**2, axis=1))


def lost_nats(rounding: Array, weights: Array, inverse_scale: Array) -> Scalar:
    """Return by how much rounding moves the log density, roughly, in nats."""
    return rounding * jnp.sum(weights**2) * jnp.abs(inverse_scale) / 2


def check_evidence(lost: Scalar) -> None:
    """Refuse an evidence that rounding moves by more than half a nat."""
    if not isinstance(lost, Tracer) and is_single(lost.dtype) and not lost <= NATS:
        raise ValueError(
            f"float32 is not enough for this covariance: rounding moves the log evidence by "
            f"about {float(lost):.2g} nats. {_REMEDY}"
        )


def resolved(
    variance: Array, rounding: Array, read: Array, weights: Array, inverse_scale: Array
) -> Array:
    """Return variances, or NaN in compiled code where float32 does not resolve a prediction.

    Args:
        variance: Of predictions for v = 1, shape `(points,)`.
        rounding: Of an entry of the covariance.
        read: `A^-1 k`, shape `(rows, points)`.
        weights: `A^-1 y`, shape `(rows, outputs)`.
        inverse_scale: Expectation of 1 / v.

    Raises:
        ValueError: If a deviation is known to less than a tenth, or a location to less than
            a quarter of a deviation, outside compiled code.
    """
    if not is_single(variance.dtype):
        return variance
    size = 1 + jnp.sqrt(jnp.sum(read**2, axis=0))
    share = rounding * size**2 / variance / 2
    pull = jnp.sqrt(jnp.sum(weights**2) * inverse_scale / variance)
    good = (share <= SHARE) & (rounding * size * pull <= DEVIATIONS)
    if isinstance(good, Tracer):
        return jnp.where(good, variance, jnp.nan)
    if not bool(jnp.all(good)):
        at = int(jnp.argmin(good))
        raise ValueError(
            f"float32 is not enough for predictions at `x`, row {at}: of its deviation "
            f"{float(jnp.sqrt(variance[at])):.2g} (for a scale of 1) rounding leaves too "
            f"little. {_REMEDY}"
        )
    return variance
