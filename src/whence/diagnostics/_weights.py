"""Quality of importance weights: effective sample size and the Pareto shape of their tail."""

import numpy as np

from ._require import numbers

# Weights whose tail does not count, whatever its shape. With a relative variance `v` no mean
# is off by more than `v**0.5` standard deviations (Cauchy and Schwarz).
EVEN = 10.0  # the largest over their mean
STEADY = 0.05  # `v`
MANY = 400  # of so many that can be said; of fewer if they differ by rounding
ROUNDING = 1e-3


def normalise(log_weights: np.ndarray) -> np.ndarray:
    """Return weights that sum to 1; all NaN if a log weight is NaN, +inf, or none is finite."""
    flat = numbers("log_weights", log_weights).astype(np.float64).ravel()
    if not flat.size:
        raise ValueError("`log_weights` must have at least one entry; got none.")
    top = flat.max()
    if not np.isfinite(top):
        return np.full(flat.shape, np.nan)
    weights = np.exp(flat - top)
    return weights / weights.sum()


def weight_ess(log_weights: np.ndarray) -> float:
    """Return the effective sample size of weights, `1 / sum(w**2)`.

    Args:
        log_weights: Log importance weights in nats, any shape, not necessarily normalised.

    References:
        Kong, Liu, Wong (1994), doi:10.1080/01621459.1994.10476469.
    """
    return float(1 / np.sum(normalise(log_weights) ** 2))


def pareto_khat(log_weights: np.ndarray) -> float:
    """Return the Pareto shape k of the upper tail of importance weights.

    Equal weights have no tail: -inf. Weights of which one is everything give inf: a quarter
    of the tail is smaller by more than floating point can tell, 700 nats. Weights that cannot
    be judged (NaN, or fewer than 25 of them, which leaves fewer than 5 in the tail) give NaN.

    Args:
        log_weights: Log importance ratios in nats, any shape, not necessarily normalised.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling,
        Journal of Machine Learning Research 25(72), arXiv:1507.02646.
    """
    weights = np.sort(normalise(log_weights))
    size = len(weights)
    # Size of the tail: Vehtari et al. (2024), appendix.
    num_tail = int(min(size / 5, 3 * np.sqrt(size)))
    if num_tail < 5 or np.isnan(weights[0]):
        return np.nan
    cutoff, tail = weights[-num_tail - 1], weights[-num_tail:]
    lower = tail[_quarter(num_tail)]
    if lower == 0 and np.sort(np.ravel(log_weights))[_quarter(num_tail) - num_tail] > -np.inf:
        return np.inf
    if tail[-1] - tail[0] <= 8 * np.finfo(np.float64).eps * tail[-1]:
        return -np.inf
    return _gpd_shape(tail - cutoff)


def judged_khat(log_weights: np.ndarray) -> float:
    """Return `pareto_khat`, but -inf of a heavy tail of weights that are as good as equal.

    Where an approximation is next to exact, its ratios differ by terms of high order. Their
    tail is heavy, as that of Student's law beside the normal one with 200 degrees of freedom
    is, and so small that no estimate feels it; k-hat knows its shape and not its size.
    """
    weights = normalise(log_weights) * np.size(log_weights)
    if np.ptp(weights) <= ROUNDING:
        return -np.inf
    khat = pareto_khat(log_weights)
    steady = weights.max() <= EVEN and weights.var() <= STEADY and weights.size >= MANY
    return -np.inf if khat > khat_limit(weights.size) and steady else khat


def smoothed(log_weights: np.ndarray) -> np.ndarray:
    """Return normalised log weights, the largest replaced by quantiles of a fitted Pareto law.

    Returns:
        Of the same shape; as they are, up to the constant, where there are fewer than 25.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry (2024), arXiv:1507.02646, section 2.4.
    """
    from arviz_stats.base import array_stats

    flat = numbers("log_weights", log_weights).astype(np.float64).ravel()
    if flat.size >= 25 and np.ptp(flat) > 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            # Of minus the log weights, as for leave-one-out. It has no law for equal ones.
            fitted, _ = array_stats.psislw(-flat)
        flat = fitted if np.isfinite(fitted).all() else flat
    return (flat - np.logaddexp.reduce(flat)).reshape(np.shape(log_weights))


def khat_limit(size: int) -> float:
    """Return the largest k that `size` weights allow, at most 0.7.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry (2024), arXiv:1507.02646, section 3.
    """
    return float(min(1 - 1 / np.log10(max(size, 11)), 0.7))


def khat_trouble(log_weights: np.ndarray | None) -> list[str]:
    """Return a phrase if draws with these log importance ratios are not to be used."""
    ratios = np.ravel([] if log_weights is None else log_weights)
    limit = khat_limit(ratios.size)
    if not ratios.size or (khat := judged_khat(ratios)) <= limit:
        return []
    if np.isnan(khat):
        return ["Pareto k-hat not known: it takes 25 finite importance ratios or more"]
    return [f"Pareto k-hat {khat:.2f}, above {limit:.2g}: do not use these draws"]


def _quarter(size: int) -> int:
    return int(size / 4 + 0.5) - 1


def _gpd_shape(excess: np.ndarray) -> float:
    """Return the shape of a generalised Pareto distribution fitted to sorted excesses.

    The empirical Bayes estimate of Zhang and Stephens (2009), doi:10.1198/tech.2009.08017,
    with the shape's sign turned (positive: heavy tail), and shrunk to 1/2 with the weight
    of 10 observations as in Vehtari et al. (2024).
    """
    size = len(excess)
    # Exact zeros (ties with the cutoff) carry no information on the tail's shape.
    quartile = excess[_quarter(size)]
    if quartile <= 0:
        quartile = excess[excess > 0][0]
    num_grid = 30 + int(np.sqrt(size))
    grid = np.arange(1, num_grid + 1)
    theta = 1 / excess[-1] + (1 - np.sqrt(num_grid / (grid - 0.5))) / (3 * quartile)
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = np.mean(np.log1p(-theta[:, None] * excess), axis=1)
        log_profile = size * (np.log(-theta / shape) - shape - 1)
    log_profile = np.where(np.isnan(log_profile), -np.inf, log_profile)
    posterior = np.exp(log_profile - log_profile.max())
    theta_hat = np.sum(theta * posterior) / posterior.sum()
    shape_hat = np.mean(np.log1p(-theta_hat * excess))
    return float((size * shape_hat + 10 * 0.5) / (size + 10))
