"""The log determinant from Lanczos matrices of random signs, less its known linear part."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._kernel import KernelTiles
from ._solve import Whitener

COLUMNS_AT_A_TIME = 256  # of one product with the kernel


class LogDet(NamedTuple):
    """An estimate of a log determinant."""

    value: float  # the estimate
    error: float  # its standard error over the probes
    unfinished: float  # how much the last two steps of Lanczos changed it


def log_det_estimate(
    kernel: KernelTiles,
    factor: Float[Array, "rows rank"],
    white: Whitener,
    lanczos: list[tuple[np.ndarray, np.ndarray]],
) -> LogDet:
    """Return the log determinant of kernel plus noise.

    With `A = P^(1/2) B P^(1/2)` it is that of P and the trace of log(B). The trace of
    B is known exactly, and g'Bg of each probe is; so the straight line through log(B) that
    fits best is a control variate.
    """
    rows = kernel.size
    rules = [_gauss(*matrix) for matrix in lanczos]
    short = [_gauss(diagonal[:-2], beside[:-2]) for diagonal, beside in lanczos]
    logs, before = (
        np.array([rows * np.sum(w * np.log(v)) for v, w in rule]) for rule in (rules, short)
    )
    linear = np.array([rows * np.sum(w * (v - 1)) for v, w in rules])
    # The slope is fitted to the same probes: its bias is a small share of its own error.
    values, weights = (np.concatenate(part) for part in zip(*rules))
    excess = values - 1 - np.average(values - 1, weights=weights)
    square = np.sum(weights * excess**2)
    slope = np.sum(weights * excess * np.log(values)) / square if square > 1e-20 else 0.0
    exact = _linear_trace(kernel, factor, white)
    each = logs + slope * (exact - linear)
    error = np.std(each, ddof=1) / np.sqrt(len(each))
    unfinished = abs(np.mean(logs - before))
    return LogDet(float(white.log_det) + float(np.mean(each)), float(error), float(unfinished))


def _gauss(diagonal: np.ndarray, beside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of Gauss quadrature: Ubaru, Chen, Saad (2017), section 3."""
    if len(diagonal) == 0:  # B is the identity
        return np.ones(1), np.ones(1)
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors[0] ** 2


def _linear_trace(kernel: KernelTiles, factor: Array, white: Whitener) -> float:
    """Return the trace of B - I: that of `P^-1 (K - L L')`.

    `P^-1` is `(I - F M F') / noise` with `M = 2 I - F'F`.
    """
    root = white.root
    middle = 2 * jnp.eye(root.shape[1], dtype=root.dtype) - root.T @ root
    inner = 0.0
    for start in range(0, root.shape[1], COLUMNS_AT_A_TIME):
        part = slice(start, start + COLUMNS_AT_A_TIME)
        columns = root[:, part]
        image = kernel.product(columns) - factor @ (factor.T @ columns)
        inner += float(jnp.sum(middle[:, part] * (root.T @ image)))
    left = float(jnp.sum(kernel.diagonal) - jnp.sum(factor**2))
    return (left - inner) / float(white.noise)
