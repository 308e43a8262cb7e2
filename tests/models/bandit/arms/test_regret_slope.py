"""The slopes that regret cannot stay below, and policies that come near them."""

import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize_scalar

from whence.models.bandit import (
    CHKUCB,
    GaussianArms,
    HondaTakemura,
    KnownVariance,
    KnownVarianceTS,
    UCB1Normal,
    regret_slope,
    simulate,
)

MEANS, VARIANCES = np.array([0.3, 1.5, 1.1, 1.5]), np.array([0.2, 3.0, 1.0, 0.7])


def _divergence(gap, variance, other):
    """Kullback-Leibler divergence of N(0, variance) from N(gap, other)."""
    return 0.5 * (np.log(other / variance) + (variance + gap**2) / other - 1)


def test_slopes_are_gaps_over_the_least_divergence_from_a_better_arm():
    known = unknown = 0.0
    for mean, variance in zip(MEANS, VARIANCES):
        gap = 1.5 - mean
        if gap == 0:
            continue
        known += gap / _divergence(gap, variance, variance)
        least = minimize_scalar(
            lambda log_other: _divergence(gap, variance, np.exp(log_other)),
            bounds=(-10, 10),
            method="bounded",
            options={"xatol": 1e-10},
        )
        unknown += gap / least.fun
    assert_allclose(regret_slope(MEANS, VARIANCES), unknown, rtol=1e-9)
    assert_allclose(regret_slope(MEANS, VARIANCES, known_variances=True), known)


def test_slopes_of_many_instances():
    means = np.random.default_rng(0).normal(size=(4, 3))
    got = regret_slope(means, np.tile(VARIANCES[:, None], 3))
    assert_allclose(got, [regret_slope(means[:, i], VARIANCES) for i in range(3)])
    assert regret_slope([2.0, 2.0], 1.0) == 0.0


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (([0.0, np.nan], 1.0), "`means` must be finite; got nan"),
        (([0.0, 1.0], [1.0, 0.0]), "`variances` must be positive and finite; got 0.0"),
        (([0.0, 1.0], [1.0, 1.0, 1.0]), r"`means` must have shape"),
        ((1.0, 1.0), r"`means` must have shape"),
    ],
)
def test_bad_input_is_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        regret_slope(*arguments)


@pytest.mark.slow
def test_policies_near_the_slope():
    """Regret by the logarithm of the round, early and late, on one instance.

    The limit is far away: in the last decade of 20,000 rounds the optimal policies are
    within a fifth of it, Thompson sampling from below and closer than it was, CHK-UCB from
    above; UCB1-Normal is several times above.
    """
    means, one = np.array([0.0, 1.0], np.float32), np.float32(1)
    environment = GaussianArms(np.tile(means[:, None], 1_000), np.ones((2, 1_000), np.float32))
    unknown = regret_slope(means, 1.0)
    known = regret_slope(means, 1.0, known_variances=True)
    (_, _), (late, error) = _slopes(CHKUCB(2), environment)
    assert error < 0.05 * unknown
    assert unknown < late < 1.2 * unknown
    vague = KnownVariance(0 * one, 100 * one, one, arms=2)
    for policy, slope in ((HondaTakemura(2), unknown), (KnownVarianceTS(vague), known)):
        (early, noise), (late, error) = _slopes(policy, environment)
        assert 0.8 * slope < late < slope
        assert late - early > 4 * np.hypot(noise, error)
    (_, _), (late, _) = _slopes(UCB1Normal(2), environment)
    assert late > 3 * unknown


def _slopes(policy, environment):
    """Return slopes with standard errors, from round 200 to 1,000 and from 2,000 to 20,000."""
    run = simulate(
        {"x": policy},
        environment,
        horizon=20_000,
        key=jr.key(40),
        common_random_numbers=False,
    )["x"]
    at = {int(n): regret for n, regret in zip(run.rounds, run.regret)}
    for first, last in ((200, 1_000), (2_000, 20_000)):
        slope = (at[last] - at[first]) / np.log(last / first)
        yield slope.mean(), slope.std() / np.sqrt(len(slope))
