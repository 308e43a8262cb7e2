"""Weights: effective sample size and Pareto k-hat against ArviZ and known tails."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.diagnostics import VariationalFit, diagnose, pareto_khat, weight_ess
from whence.diagnostics._weights import judged_khat


def test_weight_ess_of_equal_and_single_weights():
    assert_allclose(weight_ess(np.full(50, 3.0)), 50.0)
    assert_allclose(weight_ess(np.array([0.0, -np.inf, -np.inf])), 1.0)
    assert_allclose(weight_ess(np.log([1.0, 2.0, 3.0])), 36 / 14)
    # Unnormalised and extreme log weights must not overflow.
    assert_allclose(weight_ess(np.array([[1e4, 1e4], [-1e4, -1e4]])), 2.0)
    assert np.isnan(weight_ess(np.array([0.0, np.nan])))


@pytest.mark.parametrize("size", [40, 225, 1000, 5000])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_khat_equals_arviz(size, scale):
    from arviz_stats.base import array_stats

    log_weights = scale * np.random.default_rng(size).standard_t(4, size=size)
    # ArviZ takes log likelihoods, whose negative are the log ratios.
    _, khat = array_stats.psislw(-log_weights)
    assert_allclose(pareto_khat(log_weights), khat, rtol=1e-8)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9, 1.5])
def test_khat_recovers_a_pareto_tail(shape):
    """The mean of 30 estimates, against the true shape shrunk to 1/2 as documented."""
    size, replications = 4000, 30
    rng = np.random.default_rng(9)
    # Pareto weights of tail index 1/k have a generalised Pareto tail of shape k exactly.
    estimates = [pareto_khat(shape * rng.exponential(size=size)) for _ in range(replications)]
    tail = int(3 * np.sqrt(size))
    expected = (tail * shape + 10 * 0.5) / (tail + 10)
    error = np.std(estimates, ddof=1) / np.sqrt(replications)
    # The estimator's own bias at 190 tail draws is below 0.02 (Zhang and Stephens 2009).
    assert_allclose(np.mean(estimates), expected, atol=4 * error + 0.02)


def test_the_limit_of_khat_depends_on_the_number_of_weights():
    """Vehtari et al. (2024), section 3: 1 - 1 / log10(S), and 0.7 at most."""
    rng = np.random.default_rng(3)
    for size, limit in ((100, 0.5), (400, 1 - 1 / np.log10(400)), (4000, 0.7)):
        record = VariationalFit(log_weights_is=rng.normal(size=size))
        draws = {"x": np.zeros((1, size))}
        report = diagnose(draws, method="variational", record=record)
        assert_allclose(report["khat"].threshold, limit)
    # A tail of shape 0.6 is fine of many weights, and is not of a hundred.
    few, many = (-0.6 * np.log((np.arange(n) + 0.5) / n) for n in (100, 40_000))
    assert 0.5 < pareto_khat(few) < 0.7
    judged = (
        diagnose({"x": x[None]}, log_weights=x[None], method="smc")["khat"].severity
        for x in (few, many)
    )
    assert tuple(judged) == ("warning", "note")


def test_khat_where_there_is_nothing_to_fit():
    assert pareto_khat(np.zeros(1000)) == -np.inf
    assert np.isnan(pareto_khat(np.zeros(10)))
    assert np.isnan(pareto_khat(np.array([np.nan] * 100)))
    # Most weights zero: the tail holds exact zeros, and the answer must still be a number.
    mostly_zero = np.full(1000, -np.inf)
    mostly_zero[:20] = np.random.default_rng(10).normal(size=20)
    assert np.isfinite(pareto_khat(mostly_zero))


@pytest.mark.parametrize("scale", [1e3, 1e4, 1e6, 1e9])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_one_weight_that_is_everything_is_no_tail_to_be_judged(scale, shift):
    """A family 1,000 to 1e9 times too wide: its ratios underflow but for a few."""
    z = np.random.default_rng(1).normal(size=4000)
    log_weights = -0.5 * (scale * (z - shift)) ** 2 + 0.5 * z**2
    assert weight_ess(log_weights) < 10
    assert pareto_khat(log_weights) > 1
    record = VariationalFit(log_weights_is=log_weights)
    report = diagnose({"x": z[None]}, {}, method="variational", record=record)
    assert report["khat"].is_problem


@pytest.mark.parametrize("size", [1e-4, 3e-4, 1.2e-3, 1e-2])
def test_ratios_that_are_as_good_as_equal_have_no_tail(size):
    """A tail of one shape, of several sizes: where it is small no moment feels it."""
    x = np.random.default_rng(0).normal(size=4_000)
    ratios = size * np.expm1(x**2 / 2)
    assert pareto_khat(ratios) > 0.7
    weights = np.exp(ratios) / np.exp(ratios).mean()
    if size < 1e-3:
        assert_allclose(np.mean(weights * x**2), np.mean(x**2), rtol=0.02)
        assert judged_khat(ratios) == -np.inf
        assert judged_khat(ratios[:350]) == pareto_khat(ratios[:350])  # too few to say so
    else:  # by one weight, and by their variance
        assert weights.max() > 10
        assert (weights.var() > 0.05) == (size > 2e-3)
        assert judged_khat(ratios) == pareto_khat(ratios)


def test_the_variance_of_ratios_counts_without_a_large_one():
    x = np.random.default_rng(0).normal(size=4_000)
    ratios = np.minimum(0.04 * np.expm1(x**2 / 2), 1.6)
    weights = np.exp(ratios) / np.exp(ratios).mean()
    assert weights.max() < 5
    assert weights.var() > 0.1
    assert judged_khat(ratios) == pareto_khat(ratios) > 0.7
