"""Variational fits: an unsettled objective and a family that is too narrow are caught."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.diagnostics import VariationalFit, diagnose
from whence.diagnostics._trouble import trouble


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


def bbvi(rng, **fit):
    draws = {"theta": rng.normal(size=(1, 1000, 2))}
    record = VariationalFit(**fit)
    return diagnose(draws, {}, engine="BBVI", method="variational", record=record)


def trace(rng, steps=2000, decay=100.0, noise=1.0):
    return -5 - 200 * np.exp(-np.arange(steps) / decay) + noise * rng.normal(size=steps)


def test_settled_objective_and_fitting_family_are_ok(rng):
    report = bbvi(rng, elbo=trace(rng), log_weights_is=0.3 * rng.normal(size=1000))
    assert report.ok
    assert report.title == "BBVI, 1000 independent draws"
    assert_allclose(report.numbers["elbo"], -5, atol=0.2)
    assert "Pareto k-hat" in report.verdict


def test_false_alarm_rate(rng):
    """Correlated noise without trend, 300 traces: 4 standard errors with 18 degrees of
    freedom are passed by chance about once in 1000; three alarms or more in 1 of 300 suites.
    """
    alarms = 0
    for _ in range(300):
        noise = np.convolve(rng.normal(size=2009), np.ones(10) / 10, "valid")
        alarms += not bbvi(rng, elbo=-5 + noise).ok
    assert alarms <= 3


def test_still_rising_and_falling(rng):
    rising = bbvi(rng, elbo=trace(rng, decay=600.0))["elbo"]
    assert rising.is_problem
    assert "still rising" in rising.message
    falling = bbvi(rng, elbo=trace(rng) - np.linspace(0, 5, 2000))["elbo"]
    assert falling.is_problem
    assert "falling" in falling.message


def test_immaterial_trends_do_not_count(rng):
    """A noiseless trace that gains 0.01 nats a quarter has settled for all purposes."""
    assert bbvi(rng, elbo=np.linspace(0.0, 0.04, 2000)).ok


def test_the_worst_of_several_replicas_counts(rng):
    traces = np.stack([trace(rng), trace(rng, decay=600.0)])
    assert bbvi(rng, elbo=traces)["elbo"].is_problem


def test_nan_and_short_traces(rng):
    values = trace(rng)
    values[1500] = np.nan
    assert bbvi(rng, elbo=values)["elbo"].severity == "error"
    assert bbvi(rng, elbo=values[:20])["elbo"].severity == "note"


def test_too_narrow_family_is_caught(rng):
    """q = N(0, 1) for p = N(0, s^2): k = 1 - 1/s^2, by the tail of p/q under q."""
    q = rng.normal(size=4000)
    for scale, is_problem in [(1.2, False), (2.5, True)]:
        log_ratio = q**2 / 2 - q**2 / (2 * scale**2)
        report = bbvi(rng, log_weights_is=log_ratio)
        assert report["khat"].is_problem == is_problem
        assert_allclose(report["khat"].value, 1 - 1 / scale**2, atol=0.25)


def test_too_wide_family_is_caught(rng):
    """q = N(0, 1) for p = N(0, s^2): a share of s sqrt(2 - s^2) of the draws is effective.

    With a narrow p all ratios are bounded, and k-hat sees nothing.
    """
    q = rng.normal(size=40_000)
    for scale, is_problem in [(0.3, False), (0.02, True)]:
        log_ratio = q**2 / 2 - q**2 / (2 * scale**2)
        report = bbvi(rng, log_weights_is=log_ratio)
        assert not report["khat"].is_problem
        assert report["overlap"].is_problem == is_problem
        assert_allclose(report["overlap"].value, scale * np.sqrt(2 - scale**2), rtol=0.15)


def test_moments_that_the_ratios_move_are_told(rng):
    """q = N(0, 1) for p = N(m, s^2), all of which k-hat and overlap let pass."""
    q = rng.normal(size=(1, 4000))
    for mean, sd, is_problem in [(0.0, 0.6, True), (0.5, 1.0, True), (0.1, 0.9, False)]:
        log_ratio = q**2 / 2 - (q - mean) ** 2 / (2 * sd**2)
        record = VariationalFit(log_weights_is=log_ratio)
        report = diagnose({"x": q}, {}, engine="BBVI", method="variational", record=record)
        assert not report["khat"].is_problem
        assert not report["overlap"].is_problem
        assert report["moments"].is_problem == is_problem
        assert report["moments"].where == (("x",) if is_problem else ())


def test_noise_that_hides_any_trend_is_no_sign_of_rest(rng):
    noisy = trace(rng, noise=300.0)
    ratios = 0.3 * rng.normal(size=1000)
    finding = bbvi(rng, elbo=noisy, log_weights_is=ratios)["elbo"]
    assert finding.severity == "note"
    assert "cannot be told" in finding.message
    # With nothing else to judge by, that is a reason not to trust the fit.
    assert bbvi(rng, elbo=noisy)["elbo"].severity == "warning"


def test_ratios_that_were_not_computed(rng):
    report = bbvi(rng, elbo=trace(rng))
    assert report["khat"].severity == "note"
    assert "Not checked" in report["khat"].message


def test_exact_family_and_too_few_ratios(rng):
    assert bbvi(rng, log_weights_is=np.full(1000, 3.7)).ok
    assert not bbvi(rng, log_weights_is=rng.normal(size=10)).ok
    assert not bbvi(rng, log_weights_is=np.full(100, np.nan)).ok


def test_verdict_keeps_names_capitalised(rng):
    report = bbvi(rng, log_weights_is=2 * rng.exponential(size=4000))
    assert report.verdict.startswith("Do not use these draws: the Pareto k-hat of")


def test_a_khat_above_its_limit_is_told_at_once(rng):
    x = [rng.normal(size=(1, 100))]
    heavy, light = (shape * rng.exponential(size=4000) for shape in (2.0, 0.3))
    told = trouble(x, {}, chains=False, record=VariationalFit(log_weights_is=heavy))
    assert told.startswith("Pareto k-hat ")
    assert told.endswith("above 0.7: do not use these draws")
    for unknown in (light[:20], np.full(100, np.nan)):
        record = VariationalFit(log_weights_is=unknown)
        told = trouble(x, {}, chains=False, record=record)
        assert told == "Pareto k-hat not known: it takes 25 finite importance ratios or more"
    for fine in (light, np.full(100, 3.0), np.zeros(0), None):
        record = VariationalFit(log_weights_is=fine)
        assert trouble(x, {}, chains=False, record=record) == ""


def test_variance_of_gradients_against_its_bound(rng):
    below = bbvi(rng, elbo=trace(rng), gradient_variance=2.0, gradient_bound=8.0)
    assert below["variance"].severity == "ok"
    assert "2, 0.25 of its bound" in below["variance"].message
    assert below.numbers["gradient_bound"] == 8
    above = bbvi(rng, elbo=trace(rng), gradient_variance=9.0, gradient_bound=8.0)
    assert above["variance"].severity == "note"
    assert "elsewhere it curves more" in above["variance"].message
    for unknown in (None, np.nan):
        report = bbvi(rng, elbo=trace(rng), gradient_variance=9.0, gradient_bound=unknown)
        assert "variance" not in {finding.code for finding in report}
