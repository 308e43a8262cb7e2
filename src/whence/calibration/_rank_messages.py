"""How ranks that are not uniform look, what that means, and what to do."""

import numpy as np

from ._generative import LOG_LIKELIHOOD

MEANING = {
    "narrow": "the truth lies in the tails too often, so the posterior is too narrow",
    "wide": "the truth lies in the middle too often, so the posterior is too wide",
    "low": "the truth lies above the draws too often, so the posterior is too low",
    "high": "the truth lies below the draws too often, so the posterior is too high",
    "other": "neither location nor width is what is wrong",
}
REMEDY = {
    "narrow": (
        "Look for a variational family that is too small, chains that are too short to be "
        "independent, a step size too large for a sampler without a Metropolis test, or "
        "data that count twice."
    ),
    "wide": (
        "Look for data or terms of the likelihood that are left out, and for a prior or a "
        "noise that is wider in the fit than in the simulation."
    ),
    "low": (
        "Look for a Jacobian that is missing, a likelihood that differs from how data are "
        "drawn (variance for scale, an offset, a sign), and a region that chains do not "
        "reach (divergences)."
    ),
    "other": "Plot it (`.plot()`): a step or a spike shows which values are never reached.",
}
REMEDY["high"] = REMEDY["low"]
LIKELIHOOD_MEANING = {
    "low": "the draws fit the data worse than the truth does",
    "high": "the draws fit the data better than the truth does",
}
LIKELIHOOD_REMEDY = (
    "The draws do not use the data as the model says. Look for rows or terms of the "
    "likelihood that are left out or count twice, and for chains that have not converged."
)


def shape(ranks: np.ndarray, num_draws: int) -> str:
    """Name how ranks depart from uniform: a key of `MEANING`."""
    at = (ranks + 0.5) / (num_draws + 1) - 0.5
    # Of a uniform variable on (-1/2, 1/2): variance 1/12; of its square: 1/12, 1/180.
    slope = at.mean() * np.sqrt(12 * len(ranks))
    bend = (np.mean(at**2) - 1 / 12) * np.sqrt(180 * len(ranks))
    if max(abs(slope), abs(bend)) < 2:
        return "other"
    if abs(bend) >= abs(slope):
        return "narrow" if bend > 0 else "wide"
    return "low" if slope > 0 else "high"


def explain(name: str, ranks: np.ndarray, num_draws: int) -> tuple[str, str]:
    """Return what the ranks of a quantity mean, and what to do about it."""
    kind = shape(ranks, num_draws)
    if name == LOG_LIKELIHOOD and kind in LIKELIHOOD_MEANING:
        return LIKELIHOOD_MEANING[kind], LIKELIHOOD_REMEDY
    return MEANING[kind], REMEDY[kind]


def probability(p: float) -> str:
    """Return a p-value for a sentence; what rounding has decided is only bounded."""
    return "p < 1e-10" if p < 1e-10 else f"p = {p:.2g}"
