"""Normal-gamma priors estimated from past arms (empirical Bayes)."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import gammaln

from .._checks import Numbers, known, require_finite

# Logarithms of kappa, alpha and beta (the last in units of the data) stay within these.
# They are met when the past arms do not differ in mean (kappa) or in variance (alpha), and
# then say: known to a precision of e^12 rewards, which is more than anybody collects.
_BOUNDS = (-12.0, 12.0)


def match_normal_gamma(means: Numbers, variances: Numbers) -> tuple[float, ...]:
    """Return mu, kappa, alpha and beta with the moments of past arms: `from_moments`."""
    means, variances = np.asarray(means, float), np.asarray(variances, float)
    if means.ndim != 1 or means.shape != variances.shape or means.size < 2:
        raise ValueError(
            "`means` and `variances` must be vectors of one length, at least 2; got shapes "
            f"{means.shape} and {variances.shape}."
        )
    require_finite("means", means)
    require_finite("variances", variances)
    if (variances < 0).any() or variances.mean() == 0:
        raise ValueError(
            f"`variances` must not be negative, nor all zero; got {variances.min():g}."
        )
    if variances.var() == 0:
        raise ValueError(
            f"`variances` must differ between past arms; all are {variances[0]:g}. A variance "
            "that is the same for all arms is known: use `KnownVariance`."
        )
    if means.var() == 0:
        raise ValueError(f"`means` must differ between past arms; all are {means[0]:g}.")
    expected = variances.mean()
    alpha = 2 + expected**2 / variances.var(ddof=1)
    return means.mean(), expected / means.var(ddof=1), alpha, expected * (alpha - 1)


def fit_normal_gamma(rewards: Sequence[Numbers]) -> tuple[float, ...]:
    """Return mu, kappa, alpha and beta of highest evidence: `NormalGamma.fit_evidence`."""
    if not isinstance(rewards, Sequence) or isinstance(rewards, str):
        raise ValueError(f"`rewards` must be a list of arrays, one per arm; got {rewards!r}.")
    arrays = [np.asarray(known(x, "rewards"), float) for x in rewards]
    for x in arrays:
        if x.ndim != 1:
            raise ValueError(f"`rewards` must hold vectors, one per arm; got shape {x.shape}.")
        require_finite("rewards", x)
    arrays = [x for x in arrays if x.size]
    if len(arrays) < 2 or max(x.size for x in arrays) < 2:
        raise ValueError(
            "`rewards` must have at least two arms with rewards, one of them with at least "
            f"two; got arms with {[x.size for x in arrays]}."
        )
    pooled = np.concatenate(arrays)
    centre, unit = pooled.mean(), pooled.std()
    if unit == 0:
        raise ValueError(f"`rewards` must not all be equal; all are {centre:g}.")
    # In units of the data, so that one start and one set of bounds suit all.
    scaled = [(x - centre) / unit for x in arrays]
    count = np.array([x.size for x in scaled])
    mean = np.array([x.mean() for x in scaled])
    squares = np.array([((x - x.mean()) ** 2).sum() for x in scaled])

    def loss(params):
        kappa, alpha, beta = np.exp(params[1:])
        return -_log_evidence(params[0], kappa, alpha, beta, count, mean, squares)

    start = np.array([0.0, 0.0, np.log(2.0), 0.0])
    found = minimize(loss, start, method="L-BFGS-B", bounds=[(None, None), *[_BOUNDS] * 3])
    kappa, alpha, beta = np.exp(found.x[1:])
    return centre + unit * found.x[0], kappa, alpha, beta * unit**2


def _log_evidence(mu, kappa, alpha, beta, count, mean, squares) -> float:
    """Sum over past arms, up to a constant; see `NormalGamma.log_evidence`."""
    alphas, kappas = alpha + count / 2, kappa + count
    betas = beta + squares / 2 + kappa * count * (mean - mu) ** 2 / (2 * kappas)
    each = gammaln(alphas) - gammaln(alpha) + alpha * np.log(beta) - alphas * np.log(betas)
    return np.sum(each + 0.5 * np.log(kappa / kappas))
