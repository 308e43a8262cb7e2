"""Checks of what the scores are given."""

from typing import Any

import numpy as np


def require(name: str, value: Any, holds: Any, rule: str) -> None:
    """Raise `ValueError` unless a rule holds for every entry."""
    holds = np.asarray(holds)
    if not holds.all():
        wrong = np.broadcast_to(value, holds.shape)[~holds]
        raise ValueError(
            f"`{name}` must be {rule}; {wrong.size} of {holds.size} entries are not, "
            f"for example {wrong.flat[0]}."
        )


def require_probability(name: str, value: float) -> None:
    """Raise `ValueError` unless a number is between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"`{name}` must be between 0 and 1; got {value}.")
