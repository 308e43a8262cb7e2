"""Posteriors of closed forms: their draws have the moments and the evidence known exactly."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import whence as wh
from whence.core import Conditioned
from whence.models.nngp import (
    Dense,
    Erf,
    IndependentNoise,
    InverseGamma,
    PointMass,
    ScaleMixture,
    Serial,
    condition_large,
)
from whence.posterior._from_conditioned import exact

X = np.array([[1.0, 0.0], [0.5, -1.0], [-2.0, 0.3], [0.1, 0.1]])
Y = np.array([0.3, -1.2, 2.0, 0.1])
NEW = np.array([[0.2, 0.7], [1.5, 1.5], [0.0, -1.0]])
NET = Serial(Dense(2.0, 0.1), Erf(), Dense())
TIED = ScaleMixture(NET, InverseGamma(2.5, 1.5), 0.1)
OWN = IndependentNoise(NET, InverseGamma(2.5, 1.5), InverseGamma(3.0, 0.5))
DRAWS = 4000


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard: the formulas of model families mix types and ranks."""


@pytest.mark.parametrize(
    ("process", "outputs"), [(TIED, None), (TIED, 2), (OWN, 2)], ids=["one", "two", "own"]
)
def test_draws_have_the_moments_of_the_closed_form(process, outputs):
    y = Y if outputs is None else np.stack([Y, 2 - Y], 1)
    given = process.condition(X, y)
    assert isinstance(given, Conditioned)
    posterior = wh.Posterior.from_conditioned(given, NEW, draws=DRAWS, key=jr.key(1))
    each = given.latent_marginals(NEW)
    latent = posterior["latent"]
    assert latent.shape == (1, DRAWS, 3, *y.shape[1:])
    # Probability integral transform: uniform, entry by entry, against the exact law.
    ranks = np.asarray(each.cdf(latent[0])).reshape(DRAWS, -1)
    for column in ranks.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-6
    # Errors of covariances by draws of the same size from the joint law, which is exact.
    joint = np.asarray(given.latent(NEW).sample(jr.key(2), (DRAWS,)))
    ours = np.moveaxis(latent[0], 1, -1).reshape(DRAWS, -1)
    product = lambda z: z[:, 0] * z[:, -1]
    error = np.hypot(product(joint).std(), product(ours).std()) / np.sqrt(DRAWS)
    assert abs(product(joint).mean() - product(ours).mean()) < 5 * error
    assert_allclose(posterior.log_evidence, given.log_evidence)


def test_scale_and_function_are_drawn_together():
    given = TIED.condition(X, Y)
    posterior = wh.Posterior.from_conditioned(given, NEW, draws=DRAWS, key=jr.key(3))
    loc, covariance = given.moments(NEW)
    scale = posterior["scale"][0]
    assert stats.kstest(scale, stats.invgamma(4.5, 0, given.scale.rate).cdf).pvalue > 1e-6
    # Given its scale the function is normal.
    white = np.linalg.solve(np.linalg.cholesky(covariance), (posterior["latent"][0] - loc.T).T)
    assert stats.kstest((white / np.sqrt(scale)).ravel(), "norm").pvalue > 1e-6


def test_scales_of_independent_noise():
    given = OWN.condition(X, Y)
    posterior = wh.Posterior.from_conditioned(given, NEW, draws=DRAWS, key=jr.key(4))
    for name, function in (("scale", lambda v, s2: v), ("noise", lambda v, s2: s2)):
        values = np.log(posterior[name][0])
        exact_mean = given.scales.expectation(lambda v, s2: jnp.log(function(v, s2)))
        assert abs(values.mean() - exact_mean) < 5 * values.std() / np.sqrt(DRAWS)


def test_known_scale_is_the_gaussian_process():
    given = ScaleMixture(NET, PointMass(0.7), 0.1).condition(X, Y)
    posterior = wh.Posterior.from_conditioned(given, NEW, draws=DRAWS, key=jr.key(5))
    assert_allclose(posterior["scale"], 0.7)
    loc, covariance = given.moments(NEW)
    error = np.sqrt(0.7 * np.diagonal(covariance) / DRAWS)
    assert np.all(abs(posterior["latent"].mean((0, 1)) - loc[:, 0]) < 5 * error)


def test_all_that_a_posterior_does(tmp_path):
    few = TIED.condition(np.concatenate([X, X[:1]]), np.append(Y, 0.2))
    posterior = wh.Posterior.from_conditioned(few, NEW, draws=200, key=jr.key(6))
    assert list(posterior) == ["scale", "latent"]
    report = posterior.diagnose()
    assert report.ok
    assert "1 of 5 rows" in report["remark"].message
    assert "200 independent draws" in str(report)
    assert len(posterior.summary()) == 4
    assert "Lee, Yun, Yang, Lee" in posterior.citation()
    tree = posterior.to_datatree()
    assert tree["posterior"]["latent"].dims == ("chain", "draw", "point")
    posterior.save(tmp_path / "exact.nc")
    back = wh.load(tmp_path / "exact.nc")
    assert back.log_evidence == posterior.log_evidence
    assert back.sample.method == "exact"
    assert back.diagnose()["remark"].message == report["remark"].message
    assert_allclose(back["latent"], posterior["latent"])
    assert posterior.resample(50, key=jr.key(0))["latent"].shape == (1, 50, 3)
    with pytest.raises(ValueError, match="made of a closed form"):
        posterior.predict(key=jr.key(0))


def test_bad_input_is_refused():
    given = TIED.condition(X, Y)
    large = condition_large(TIED, X, Y, key=jr.key(0))
    assert not isinstance(large, Conditioned)
    with pytest.raises(ValueError, match="`conditioned` must be .*; got LargeConditioned"):
        exact(large, NEW, 10, jr.key(0))
    with pytest.raises(ValueError, match="`draws` must be a whole number; got 1.5"):
        exact(given, NEW, 1.5, jr.key(0))
    assert exact(given, NEW, np.int64(2), jr.key(0))["sample"].positions["scale"].shape == (
        1,
        2,
    )
