"""What to know of data and of a posterior before trusting it, in words."""

import numpy as np

from ....core._types import AnyArray


def remarks_on(x: AnyArray, jitter: float, order: float) -> tuple[str, ...]:
    """Return remarks on data, jitter and moments that do not exist."""
    said = []
    repeated = repeated_rows(x)
    if repeated:
        said.append(
            f"{repeated} of {len(x)} rows of `x` repeat another: without `noise` the "
            "covariance is singular."
        )
    said += remarks_on_inputs(x)
    if jitter > 0:
        said.append(
            f"A jitter of {jitter:.2g} was added to the covariance: noise that you did not ask "
            "for, a part of the evidence and of predictions."
        )
    return (*said, *remarks_on_moments(order))


def remarks_on_moments(order: float) -> tuple[str, ...]:
    """Return remarks on moments that do not exist."""
    if order <= 0.5:
        return ("Predictions have no mean (NaN) and no variance: use quantiles.",)
    if order <= 1:
        return ("Predictions have a mean but infinite variance: use quantiles.",)
    return ()


def repeated_rows(x: AnyArray) -> int:
    """Return how many rows are equal to an earlier one."""
    rows = np.asarray(x).reshape(len(x), -1)
    return len(rows) - len(np.unique(rows, axis=0))


def remarks_on_inputs(x: AnyArray) -> tuple[str, ...]:
    """Return remarks on columns that say nothing."""
    rows = np.asarray(x).reshape(len(x), -1)
    constant = np.flatnonzero(np.ptp(rows, axis=0) == 0) if len(rows) > 1 else np.array([])
    if not len(constant):
        return ()
    named = ", ".join(str(int(i)) for i in constant[:10])
    return (f"Columns of `x` that never vary ({len(constant)}: {named}) act as a bias only.",)
