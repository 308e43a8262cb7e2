"""Problems and policies of the study of variance-adaptive Thompson sampling.

The regrets to compare with are those of an independent simulation in NumPy with float64,
over 2,000 instances (1,000 for CHK-UCB and Bayes-UCB): means, standard errors where they
were kept, and medians, rounded, for policies whose mean hangs on a few instances.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..core._types import PRNGKey
from ..models import bandit
from ..models.bandit import GaussianTS, KnownVariance, KnownVarianceTS, NormalGamma, VarTS

ARMS, HORIZON = 10, 2_000


class PublishedRegret(NamedTuple):
    """What the independent simulation found."""

    mean: float  # mean regret
    error: float | None = None  # its standard error; None if it was not kept
    median: float | None = None  # median regret, rounded; None if it was not kept


class BanditProblem(NamedTuple):
    """Instances, and the policies that play them."""

    title: str  # what the arms are
    instances: Callable[[int, PRNGKey], Any]  # draws so many instances, given a key
    policies: Mapping[str, Callable[[Any], Any]]  # by name, a function of the instances
    references: Mapping[str, PublishedRegret]  # what was found before, by name of the policy
    # prior of the policy whose regret is proved to stay below a bound, or None
    bound: Any = None


def fixed(variance: float, prior_variance: float, mu: float = 0.0) -> GaussianTS:
    """Return Thompson sampling that takes one variance for all arms."""
    return GaussianTS(variance, arms=ARMS, mu=mu, kappa=variance / prior_variance)


def learning(prior: NormalGamma) -> VarTS:
    """Return Thompson sampling that learns means and variances."""
    # Pyright takes the abstract `arms` for a field.
    return VarTS(prior)  # pyright: ignore[reportCallIssue]


def knowing(prior: KnownVariance) -> KnownVarianceTS:
    """Return Thompson sampling that knows variances."""
    return KnownVarianceTS(prior)  # pyright: ignore[reportCallIssue]


def _always(policy: Any) -> Callable[[Any], Any]:
    return lambda instances: policy


_WITHOUT_PRIOR = {
    "UCB1": _always(bandit.UCB1(ARMS)),
    "UCB1-Tuned": _always(bandit.UCB1Tuned(ARMS)),
    "UCB-V": _always(bandit.UCBV(ARMS)),
    "UCB1-Normal": _always(bandit.UCB1Normal(ARMS)),
    "MVTS": _always(bandit.MVTS(ARMS)),
    "Honda-Takemura, a = -1/2": _always(bandit.HondaTakemura(ARMS)),
}


def own_prior(alpha: float, arms: int = ARMS) -> NormalGamma:
    """Return the prior of arms that are alike: `mu = 0`, `kappa = beta = 1`."""
    return NormalGamma(0.0, 1.0, alpha, 1.0, arms=arms)


def _of(*values: Any) -> tuple[PublishedRegret, ...]:
    return tuple(
        PublishedRegret(*v) if isinstance(v, tuple) else PublishedRegret(v) for v in values
    )


def _alike(title: str, alpha: float, regrets: tuple[PublishedRegret, ...]) -> BanditProblem:
    prior, expected = own_prior(alpha), 1 / (alpha - 1)
    known = lambda env: knowing(KnownVariance(0.0, env.scale**2, env.scale**2))
    policies = {
        "VarTS": _always(learning(prior)),
        "TS, variances known": known,
        "TS, expected variance": _always(fixed(expected, expected)),
        "TS, four times that": _always(fixed(4 * expected, expected)),
        "TS, a quarter of it": _always(fixed(expected / 4, expected)),
        **_WITHOUT_PRIOR,
        "Honda-Takemura, a = -1": _always(bandit.HondaTakemura(ARMS, a=-1.0)),
        "CHK-UCB": _always(bandit.CHKUCB(ARMS)),
        "Bayes-UCB": _always(bandit.BayesUCB(prior)),  # pyright: ignore[reportCallIssue]
    }
    draw = lambda num, key: bandit.sample_instances(prior, instances=num, key=key)
    references = dict(zip(policies, regrets, strict=True))
    return BanditProblem(title, draw, policies, references, prior)


EXPECTED_VARIANCES = np.repeat([0.05, 4.0], ARMS // 2)  # expected variances


def _draw_groups(num: int, key: PRNGKey) -> bandit.GaussianArms:
    key_precision, key_mean = jr.split(key)
    precision = jr.gamma(key_precision, 4.0, (ARMS, num)) / (3 * EXPECTED_VARIANCES[:, None])
    return bandit.GaussianArms(jr.normal(key_mean, precision.shape), 1 / jnp.sqrt(precision))


def _groups() -> BanditProblem:
    pooled = float(EXPECTED_VARIANCES.mean())
    prior = NormalGamma(0.0, EXPECTED_VARIANCES, 4.0, 3 * EXPECTED_VARIANCES)
    policies = {
        "VarTS": _always(learning(prior)),
        "VarTS, pooled prior": _always(
            learning(NormalGamma(0.0, 1.0, 4.0, 3 * pooled, arms=ARMS))
        ),
        "TS, variances known": lambda env: knowing(KnownVariance(0.0, 1.0, env.scale**2)),
        "TS, expected variance of each arm": _always(
            knowing(KnownVariance(0.0, 1.0, EXPECTED_VARIANCES))
        ),
        "TS, expected variance": _always(fixed(pooled, 1.0)),
        "TS, variance 4": _always(fixed(4.0, 1.0)),
        "TS, variance 0.05": _always(fixed(0.05, 1.0)),
        **_WITHOUT_PRIOR,
    }
    regrets = _of(
        *[(128.2, 1.5), (151.0, 2.0), (116.6, 1.7), (124.0, 1.9), (143.6, 3.0), (203.8, 2.5)],
        *[(202, 10, 27), (140.7, 3.8), (180.6, 8.8, 33), (436.0, 2.6), (1393, 9)],
        *[(132.6, 4.8), (198.0, 1.3)],
    )
    references = dict(zip(policies, regrets, strict=True))
    title = "Two groups of arms: expected variances 0.05 and 4, means Normal(0, 1)"
    return BanditProblem(title, _draw_groups, policies, references)


def _bounded(
    title: str,
    draw: Callable[[int, PRNGKey], Any],
    variance: Callable[[Any], Any],
    moments: tuple[float, float, float],
    regrets: tuple[PublishedRegret, ...],
) -> BanditProblem:
    """Rewards around 1/2, with the prior of their moments and with wrong ones."""
    kappa, alpha, beta = moments
    with_prior = lambda mu, a, b: _always(learning(NormalGamma(mu, kappa, a, b, arms=ARMS)))
    expected = beta / (alpha - 1)
    spread = expected / kappa  # variance of the means
    known = lambda env: knowing(KnownVariance(0.5, spread, variance(env)))
    policies = {
        "VarTS, prior of the moments": with_prior(0.5, alpha, beta),
        "VarTS, generic prior": _always(learning(NormalGamma(0.5, 1.0, 2.0, 0.1, arms=ARMS))),
        "VarTS, alpha and beta times 4": with_prior(0.5, 4 * alpha, 4 * beta),
        "VarTS, beta / 4": with_prior(0.5, alpha, beta / 4),
        "VarTS, beta times 4": with_prior(0.5, alpha, 4 * beta),
        "VarTS, mu too low by 1": with_prior(-0.5, alpha, beta),
        "TS, expected variance": _always(fixed(expected, spread, 0.5)),
        "TS, variance 1/4": _always(fixed(0.25, spread, 0.5)),
        "TS, variances known": known,
        **{name: _WITHOUT_PRIOR[name] for name in ("UCB1", "UCB1-Tuned", "UCB-V", "MVTS")},
        "Honda-Takemura, a = -1/2": _WITHOUT_PRIOR["Honda-Takemura, a = -1/2"],
    }
    return BanditProblem(title, draw, policies, dict(zip(policies, regrets, strict=True)))


def _uniform_means(num: int, key: PRNGKey) -> jnp.ndarray:
    return jr.uniform(key, (ARMS, num), minval=1e-6)


def _draw_intervals(num: int, key: PRNGKey) -> bandit.UniformArms:
    """Draw intervals within (0, 1)."""
    key_centre, key_width = jr.split(key)
    width = jr.uniform(key_width, (ARMS, num), minval=0.05, maxval=0.5)
    return bandit.UniformArms(width + (1 - 2 * width) * _uniform_means(num, key_centre), width)


def _draw_beta(num: int, key: PRNGKey) -> bandit.BetaArms:
    p = _uniform_means(num, key)
    return bandit.BetaArms(4 * p, 4 * (1 - p))


def problems() -> dict[str, BanditProblem]:
    """Return the problems by name; regrets are in the order of their policies."""
    return {
        "p1": _alike(
            "Arms alike, expected variance 1/3 (alpha = 4)",
            4.0,
            _of(
                *[(53.8, 0.7), (43.2, 0.5), (53.7, 2.3), (109.7, 0.9), (53.9, 2.9, 20)],
                *[(143.7, 0.8), (44.3, 2.7, 28), (295.4, 0.6), (609, 4), (107.3, 0.7)],
                *[(92.2, 0.5), (103.0, 0.5), (116.8, 0.7), (54.3, 1.0)],
            ),
        ),
        "p2": _alike(
            "Arms alike, expected variance 1 whose own variance is infinite (alpha = 2)",
            2.0,
            _of(
                *[(99.6, 1.8), (67.3, 1.0), (104.6, 5.5), (198.4, 2.0), (123, 11, 35)],
                *[(130.0, 4.4), (154.8, 12.7, 29), (337.5, 1.2), (1051, 11), (104.9, 3.8)],
                *[(151, 1), (168, 1), (190.6, 1.7), (104.5, 2.9)],
            ),
        ),
        "p4": _groups(),
        "bernoulli": _bounded(
            "Rewards 0 or 1",
            lambda num, key: bandit.BernoulliArms(_uniform_means(num, key)),
            lambda env: env.probs * (1 - env.probs) + 1e-9,
            (1.98, 6.93, 0.985),
            _of(
                *[(42.5, 0.4), (46.1, 0.4), (36.5, 0.3), (32.0, 0.7), (72.0, 0.3)],
                *[(156.6, 3.8), (38.3, 0.3), (48.9, 0.4), (43.0, 0.8)],
                *[184.4, 46.3, 276.2, 136.7, 63.2],
            ),
        ),
        "beta": _bounded(
            "Rewards Beta(4 p, 4 (1 - p))",
            _draw_beta,
            lambda env: env.means * (1 - env.means) / 5,
            (0.396, 6.93, 0.197),
            _of(
                *[(14.0, 0.1), (22.0, 0.1), (12.5, 0.2), (15.0, 0.6), (27.6, 0.1)],
                *[(186.0, 3.9), (13.3, 0.2), (47.3, 0.2), (15.0, 0.4)],
                *[184.6, 49.4, 226.4, 136.2, 34.0],
            ),
        ),
        "uniform": _bounded(
            "Rewards uniform on intervals within (0, 1), half widths from 0.05 to 0.5",
            _draw_intervals,
            lambda env: env.half_width**2 / 3,
            (1.370, 3.605, 0.0803),
            _of(
                *[(16.6, 0.2), (22.3, 0.1), (12.8, 0.2), (14.2, 0.3), (26.3, 0.1)],
                *[(325, 5), (13.7, 0.2), (52.8, 0.4), (13.8, 0.2)],
                *[202.5, 62.9, 211.5, 152.7, 27.6],
            ),
        ),
    }


# Regret of VarTS with the prior of "p1", by horizon and by number of arms.
_BY_ROUNDS = _of((24.8, 0.2), (31.4, 0.4), (37.4, 0.4), (45.4, 0.7), (53.2, 0.7), (64.6, 1.1))
HORIZONS: dict[int, PublishedRegret] = dict(
    zip((125, 250, 500, 1_000, 2_000, 4_000), _BY_ROUNDS)
)
ARM_COUNTS: dict[int, PublishedRegret] = dict(
    zip((2, 5, 20, 50), _of((9.1, 0.3), (28.0, 0.6), (99.0, 1.3), (213.5, 2.3)))
)
