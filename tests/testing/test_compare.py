import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.testing import Estimate, compare_moments, compare_reference
from whence.testing._compare import estimate, scalars


def chains(rng, correlation, shape):
    """Stationary AR(1) chains with standard normal margins."""
    draws = rng.normal(size=shape)
    for t in range(1, shape[1]):
        draws[:, t] = correlation * draws[:, t - 1] + np.sqrt(1 - correlation**2) * draws[:, t]
    return draws


def test_scalars_are_named_as_in_stan():
    value = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    named = scalars({"w": value, "s": value[..., 0, 0]}, batch_ndim=2)
    assert list(named) == ["w[1,1]", "w[1,2]", "w[2,1]", "w[2,2]", "s"]
    assert_allclose(named["w[2,1]"], value[:, :, 1, 0])


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_standard_errors_are_the_spread_of_estimates(correlation):
    # 200 replications: the spread of an estimate is itself known to about 5%, and the mean
    # of the claimed errors must agree within 20%, four standard errors.
    rng = np.random.default_rng(1)
    found = [estimate(chains(rng, correlation, (2, 500))) for _ in range(200)]
    means, sds = np.array([(e.mean, e.sd) for e in found]).T
    assert_allclose(np.mean([e.mcse_mean for e in found]), means.std(), rtol=0.2)
    assert_allclose(np.mean([e.mcse_sd for e in found]), sds.std(), rtol=0.2)


def test_weighted_standard_errors_are_the_spread_of_estimates():
    # Draws from N(0, 1.5) weighted to be N(0.3, 1).
    rng = np.random.default_rng(2)
    found = []
    for _ in range(300):
        draws = 1.5 * rng.normal(size=(1, 1_000))
        log_weights = -0.5 * (draws - 0.3) ** 2 + 0.5 * (draws / 1.5) ** 2
        found.append(estimate(draws, log_weights))
    means, sds = np.array([(e.mean, e.sd) for e in found]).T
    assert_allclose(np.mean([e.mcse_mean for e in found]), means.std(), rtol=0.2)
    assert_allclose(np.mean([e.mcse_sd for e in found]), sds.std(), rtol=0.2)
    assert_allclose(means.mean(), 0.3, atol=5 * means.std() / np.sqrt(300))
    assert_allclose(sds.mean(), 1.0, atol=5 * sds.std() / np.sqrt(300) + 1e-3)
    assert 300 < np.mean([e.ess for e in found]) < 1_000


def test_equal_weights_change_nothing():
    draws = np.random.default_rng(3).normal(size=(1, 500))
    plain, weighted = estimate(draws), estimate(draws, np.zeros((1, 500)))
    assert_allclose(weighted.mean, plain.mean)
    assert_allclose(weighted.sd, plain.sd, rtol=2e-3)
    assert_allclose(weighted.ess, 500)


def test_a_right_sample_passes_and_wrong_ones_fail():
    rng = np.random.default_rng(4)
    draws = {"x": rng.normal(size=(4, 1_000, 2))}
    truth = {"x": (np.zeros(2), np.ones(2))}
    compare_moments(draws, truth).check(max_z=4.5, min_ess=1_000.0)
    # 4,000 draws: the mean is known to 1/63, the standard deviation to 1/89.
    with pytest.raises(AssertionError, match=r"x\[2\]: mean .* should be 0.15"):
        compare_moments(draws, {"x": (np.array([0, 0.15]), np.ones(2))}).check()
    with pytest.raises(AssertionError, match=r"x\[1\]: sd .* should be 1.1"):
        compare_moments(draws, {"x": (np.zeros(2), np.array([1.1, 1.0]))}).check()
    with pytest.raises(AssertionError, match="effective sample size"):
        compare_moments(draws, truth).check(min_ess=10_000.0)
    compare_moments(draws, {"x": (np.full(2, 0.15), np.ones(2))}, bias=0.2).check()


def test_chains_that_disagree_fail():
    draws = np.random.default_rng(5).normal(size=(4, 500)) + np.array([[0.0], [0], [0], [2]])
    with pytest.raises(AssertionError, match="R-hat"):
        compare_moments({"x": draws}, {"x": (0.5, 1.3)}).check(min_ess=0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0])
def test_constant_or_missing_draws_fail(value):
    draws = {"x": np.full((2, 100), value)}
    with pytest.raises(AssertionError):
        compare_moments(draws, {"x": (0.0, 1.0)}).check()


def test_reference_draws_and_their_estimates_agree():
    rng = np.random.default_rng(6)
    draws = {"b": rng.normal(size=(4, 1_000, 1))}
    reference = rng.normal(size=(10, 1_000))
    by_draws = compare_reference(draws, {"b[1]": reference})
    by_estimate = compare_reference(draws, {"b[1]": estimate(reference)})
    assert by_draws == by_estimate
    by_draws.check()
    row = by_draws.rows[0]
    error = np.hypot(estimate(draws["b"][..., 0]).mcse_mean, estimate(reference).mcse_mean)
    assert_allclose(row.z_mean, (draws["b"].mean() - reference.mean()) / error)
    assert by_draws.max_z_mean == abs(row.z_mean)
    assert "b[1]" in str(by_draws)
    shifted = Estimate(0.2, 1.0, 0.01, 0.01, 10_000.0, 1.0)
    with pytest.raises(AssertionError, match="mean"):
        compare_reference(draws, {"b[1]": shifted}).check()


def test_missing_names_are_refused():
    with pytest.raises(ValueError, match=r"`draws` must contain \['y'\]"):
        compare_moments({"x": np.zeros((1, 10))}, {"y": (0.0, 1.0)})
