r"""Upper bounds on the Bayes regret of Thompson sampling with the true prior.

Given the history, the arm that is played and the best arm have the same distribution, so
that the regret of a round is, with posterior means m and any widths s known from the history,

    E[mu_best - m_best] <= c E s_played + sum_i s_i E[((mu_i - m_i) / s_i - c)_+]

for every c > 0. With s the posterior scale, the last expectation is
m_nu(c) = (nu + c^2) / (nu - 1) f(c) - c (1 - F(c)) for a t distribution, and phi(c) - c (1 -
Phi(c)) for a normal one. It falls as nu grows, so that of the prior bounds it. What remains is
the sum of the widths over rounds.

Known variances: the widths depend on the counts only, and every arm's falls with its count.
The sum is at most that of the n largest widths of all arms.

Unknown variances: by Cauchy and Schwarz the sum is at most the square root of n times the
sum of squares; a squared width is at most the posterior expectation of the variance over
kappa, and that expectation, as a function of the arm's count, is a martingale. Its mean stays
at v = beta / (alpha - 1), and the sum of 1 / (kappa + s) over s < n is at most
1 / kappa + log(1 + (n - 1) / kappa).

References:
    Russo and Van Roy (2014), "Learning to optimize via posterior sampling",
    doi:10.1287/moor.2014.0650, for the equality of distributions.
"""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

from ....core._convert import part, whole
from ._known_variance import KnownVariance
from ._normal_gamma import NormalGamma


def bayes_regret_bound(prior: NormalGamma | KnownVariance, *, horizon: int) -> float:
    """Bound the Bayes regret of Thompson sampling on instances drawn from its own prior.

    Of order `sqrt(horizon * sum of variances)` up to logarithms. It holds for any horizon,
    and is some ten times what simulations show.

    Args:
        prior: The true prior, that `VarTS` or `KnownVarianceTS` also uses.
        horizon: Number of rounds.

    Returns:
        The bound, in units of the reward.

    Raises:
        ValueError: If the prior has batch axes, its `alpha` is not above 1 (the expected
            variance is infinite then), or `horizon` is not a positive integer.
    """
    horizon = whole("horizon", least=1)(horizon)
    if not isinstance(prior, KnownVariance):
        part("prior", NormalGamma)(prior)
    if prior.batch_shape:
        raise ValueError(f"`prior` must be without batch axes; it has {prior.batch_shape}.")
    if isinstance(prior, KnownVariance):
        return _bound_of_known_variance(
            np.asarray(prior.variance, float), np.asarray(prior.noise, float), horizon
        )
    kappa, alpha, beta = (np.asarray(x, float) for x in (prior.kappa, prior.alpha, prior.beta))
    if not (alpha > 1).all():
        raise ValueError(f"`alpha` of the prior must be above 1; got {alpha.min():g}.")
    return _bound_of_unknown_variance(kappa, alpha, beta / (alpha - 1), horizon)


def _bound_of_known_variance(variance, noise, horizon) -> float:
    pulls = np.arange(horizon)
    widths = 1 / np.sqrt(1 / variance[:, None] + pulls / noise[:, None])
    total = np.sort(widths.ravel())[-horizon:].sum()
    scale = np.sqrt(variance).sum()

    def bound(c):
        density = np.exp(-(c**2) / 2) / np.sqrt(2 * np.pi)
        return c * total + horizon * (density - c * ndtr(-c)) * scale

    return _smallest(bound)


def _bound_of_unknown_variance(kappa, alpha, expected, horizon) -> float:
    from scipy.stats import t as student  # slow to import

    each = expected * (1 / kappa + np.log1p((horizon - 1) / kappa))
    total = np.sqrt(horizon * each.sum())
    nu, scale = 2 * alpha, np.sqrt(expected / kappa)

    def bound(c):
        excess = (nu + c**2) / (nu - 1) * student.pdf(c, nu) - c * student.sf(c, nu)
        return c * total + horizon * np.sum(excess * scale)

    return _smallest(bound)


def _smallest(bound) -> float:
    # Convex in c: a line plus expectations of (T - c)_+.
    found: Any = minimize_scalar(bound, bounds=(0.0, 100.0), method="bounded")
    return float(found.fun)
