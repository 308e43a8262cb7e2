"""What to know of data and of a posterior before trusting it, in words."""

from typing import Any

import numpy as np

from ....core._types import AnyArray
from ..laws._abstract_law import AbstractDensityLaw


def remarks_of(given: Any, jitter: float) -> tuple[str, ...]:
    """Return remarks on a process given observations: data, jitter, law and moments."""
    said, x, law = [], given.x, given.process.scale
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
    said += remarks_on_targets(given.y, float(given.log_evidence), float(given.conflict))
    if isinstance(law, AbstractDensityLaw):
        fine = law.nodes(given.size, given.quadratic, num_nodes=193).log_integral
        moved = abs(float(fine - law.log_integral(given.size, given.quadratic)))
        if not moved < (1e-6 if fine.dtype == np.float64 else 1e-2):
            said.append(
                f"The integral over the law of the scale is known to {moved:.1g} nats only: it "
                "changes by that with twice as many nodes."
            )
    return (*said, *remarks_on_moments(float(law.tail() + given.size / 2)))


def remarks_on_targets(
    y: AnyArray, log_evidence: float | None = None, conflict: float = 1.0
) -> tuple[str, ...]:
    """Return remarks on observations that a process of mean zero does not expect."""
    columns, said = np.asarray(y).reshape(len(y), -1), []
    mean, spread = np.mean(columns, axis=0), np.std(columns, axis=0)
    far = np.abs(mean) > 10 * spread
    if len(columns) > 2 and far.any():
        at = int(np.argmax(far))
        said.append(
            f"`y` has a mean of {mean[at]:.3g} and a spread of {spread[at]:.3g}: the process "
            "has mean zero. Subtract the mean."
        )
    if log_evidence is not None and not np.isfinite(log_evidence):
        said.append(f"The log evidence is {log_evidence}: no density of these observations.")
    if conflict < 1e-4:
        said.append(
            f"Observations of this size have a p-value of {conflict:.1g} before they are seen: "
            "the law of the scale, the kernel or the noise does not fit. Standardise `y`, or "
            "widen the law."
        )
    return tuple(said)


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
