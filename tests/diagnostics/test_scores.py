"""Scores of real predictions against numerical integration of their definition."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import integrate, stats

from whence.diagnostics import (
    coverage,
    crps_draws,
    crps_normal,
    crps_normal_mixture,
    crps_student_t,
    interval_score,
)


def _crps(law, y):
    below = integrate.quad(lambda x: law.cdf(x) ** 2, -np.inf, y, limit=200)[0]
    above = integrate.quad(lambda x: law.sf(x) ** 2, y, np.inf, limit=200)[0]
    return below + above


@pytest.mark.parametrize("y", [-3.0, 0.4, 2.0, 9.0])
def test_crps_is_the_integral_that_defines_it(y):
    assert_allclose(crps_normal(y, 0.4, 1.7), _crps(stats.norm(0.4, 1.7), y), rtol=1e-7)
    for df in (1.5, 4.0, 30.0):
        truth = _crps(stats.t(df, 0.4, 1.7), y)
        assert_allclose(crps_student_t(y, df, 0.4, 1.7), truth, rtol=1e-6)


def test_crps_of_a_mixture():
    weights, loc = (
        np.array([0.2, 0.5, 0.3]),
        np.array([-1.0, 0.5, 3.0]),
    )
    law = stats.Mixture([stats.Normal(mu=m, sigma=0.8) for m in loc], weights=weights)

    class Frozen:
        cdf = staticmethod(law.cdf)
        sf = staticmethod(law.ccdf)

    y = np.array([-2.0, 0.0, 5.0])
    got = crps_normal_mixture(y, loc, 0.8, weights)
    assert_allclose(got, [_crps(Frozen, v) for v in y], rtol=1e-6)
    # Components of no width are points: the score of an ensemble.
    got = crps_normal_mixture(np.array([1.0]), np.array([[0.0, 2.0]]), np.zeros(1), 0.5)
    assert_allclose(got, 1.0 - 0.5)


def test_crps_of_draws_is_unbiased():
    rng = np.random.default_rng(0)
    y = np.repeat([[-1.0, 0.0, 2.5]], 4000, 0)
    scores = crps_draws(y, rng.normal(size=(5, *y.shape)))
    error = scores.std(0, ddof=1) / np.sqrt(len(y))
    assert np.all(np.abs(scores.mean(0) - crps_normal(y[0], 0.0, 1.0)) < 4.5 * error)


def test_the_true_law_scores_best():
    y = np.random.default_rng(1).standard_t(3, size=4000)
    true = crps_student_t(y, 3.0, 0.0, 1.0)
    for other in (crps_student_t(y, 3.0, 0.0, 1.6), crps_normal(y, 0.5, 1.0)):
        gap = other - true
        assert gap.mean() > 4 * gap.std() / np.sqrt(len(y))


def test_crps_without_a_mean_is_infinite():
    assert np.isinf(crps_student_t(0.0, 1.0, 0.0, 1.0))
    assert_allclose(crps_student_t(0.7, 1e7, 0.0, 1.0), crps_normal(0.7, 0.0, 1.0), rtol=1e-6)


def test_intervals():
    y = np.array([0.0, 2.0, -3.0])
    assert_allclose(interval_score(y, -1.0, 1.0, level=0.9), [2.0, 2 + 20.0, 2 + 40.0])
    held = coverage(y, -1.0, 2.0, level=0.9)
    assert_allclose(held, (2 / 3, np.sqrt(0.09 / 3), 0.9))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: crps_normal(0.0, 0.0, np.array([1.0, 0.0])),
            "`scale` must be positive; 1 of 2",
        ),
        (lambda: crps_student_t(0.0, -1.0, 0.0, 1.0), "`df` must be positive"),
        (lambda: crps_normal_mixture(np.zeros(1), np.zeros((1, 2)), 1.0, 0.4), "summing to 1"),
        (lambda: crps_draws(np.zeros(3), np.zeros((1, 3))), "at least 2 draws; got 1"),
        (lambda: coverage(np.zeros(0), 0.0, 1.0), "`y` must hold observations"),
        (lambda: interval_score(0.0, 0.0, 1.0, level=95.0), "`level` must be between 0 and 1"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
