"""Equally weighted draws from weighted ones."""

import numpy as np


def systematic_indices(log_weights: np.ndarray, *, offset: float = 0.5) -> np.ndarray:
    """Choose draws by systematic resampling, in ascending order.

    A draw of weight w is taken floor(n w) or ceil(n w) times, n being the number of draws.

    Args:
        log_weights: In nats, any shape, not necessarily normalised.
        offset: Where the first of the n evenly spaced points lies, in [0, 1); uniformly
            random makes the counts unbiased.

    Returns:
        Indices into the raveled weights, as many as there are weights.

    Raises:
        ValueError: If a weight is not a number, all are zero, or `offset` is out of range.

    References:
        Kitagawa (1996), doi:10.1080/10618600.1996.10474692.
    """
    flat = np.asarray(log_weights, np.float64).ravel()
    if not 0 <= offset < 1:
        raise ValueError(f"`offset` must be in [0, 1); got {offset}.")
    if flat.size == 0 or not np.isfinite(flat.max()):
        raise ValueError("`log_weights` must be numbers, at least one above -inf.")
    cumulative = np.cumsum(np.exp(flat - flat.max()))
    points = (np.arange(flat.size) + offset) / flat.size * cumulative[-1]
    # Rounding must not lead past the last draw with a weight.
    last = int(np.flatnonzero(flat > -np.inf)[-1])
    return np.minimum(np.searchsorted(cumulative, points, side="right"), last)
