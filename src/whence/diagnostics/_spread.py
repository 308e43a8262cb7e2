"""Are draws without a Metropolis test as wide as the gradient of their target says?"""

import numpy as np

from ._data import Draws
from ._names import listing
from ._report import Finding

OFF = 1.1  # standard deviations, as a ratio
SIGMAS = 4.0
_SOURCE = "rule of thumb: 10% and 4 standard errors"


def check_spread(
    inflation: np.ndarray, error: np.ndarray, draws: Draws
) -> tuple[list[Finding], dict[str, float]]:
    """Judge variances of draws in units of the target's; see `UnadjustedChains`."""
    ratio, error = np.asarray(inflation, np.float64), np.asarray(error, np.float64)
    numbers = {"inflation": float(ratio[-1]), "inflation_error": float(error[-1])}
    small = ratio < 1
    with np.errstate(divide="ignore", invalid="ignore"):
        # An estimate that is small by chance has a small error, too.
        sure = np.abs(ratio - 1) > SIGMAS * error / np.where(small, np.abs(ratio), 1)
    wide = sure & (ratio > OFF**2)
    wrong = wide | (sure & (ratio < OFF**-2))
    if wrong.any():
        return [_off(ratio, wide if wide.any() else wrong, draws)], numbers
    measured = f"{ratio[-1]:.3g} times the target's (standard error {error[-1]:.2g})"
    if not SIGMAS * error[-1] <= OFF**2 - 1:
        message = f"Whether the draws are too wide cannot be told: variances are {measured}"
        remedy = "Make more draws, or compare with a run with half the step size."
        return [Finding("spread", "note", message, float(error[-1]), None, "", remedy)], numbers
    message = f"By the target's gradient at the draws, variances are {measured}"
    return [Finding("spread", "ok", message, float(ratio[-1]), OFF**2, _SOURCE)], numbers


def _off(ratio: np.ndarray, wrong: np.ndarray, draws: Draws) -> Finding:
    is_wide = bool(ratio[wrong].max() > 1)
    order = [i for i in np.argsort(-np.abs(ratio - 1), kind="stable") if wrong[i]]
    worst, labels = float(ratio[order[0]]), draws.coordinates()
    names = tuple(labels[i] for i in order if i < len(labels))
    where = f" ({listing(names)})" if names else ", in the mean over all coordinates"
    message = (
        f"By the target's gradient at the draws, their standard deviations are up to "
        f"{max(worst, 0) ** 0.5:.3g} times those of the target{where}"
    )
    remedy = (
        "That is the noise of the minibatches, or too large a step: the excess of variance "
        "goes with the step size, and what the noise makes of it also with 1 / `batch_size`. "
        f"Make that product {max((worst - 1) / (OFF**2 - 1), 2):.0f} times smaller, or "
        "compare with NUTS."
    )
    if not is_wide:
        message = message.replace("up to", "as low as")
        remedy = (
            "The chains have not covered the posterior, or a preconditioner follows the "
            "position: run longer, or compare with NUTS."
        )
    limit = OFF**2 if is_wide else OFF**-2
    return Finding("spread", "warning", message, worst, limit, _SOURCE, remedy, names)
