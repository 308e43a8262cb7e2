"""The noise: exact paths, the approximation, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import whence as wh
from whence.models import fbm
from whence.models.fbm._forms import own_variance


def test_exact_paths_have_the_exact_covariance(key):
    """Circulant and dense, within 5 standard errors of a sample covariance."""
    paths, times = 20_000, np.array([0.25, 0.5, 0.75, 1.0, 1.25])
    for kind, at in (("I", times), ("I", times**2), ("II", times)):
        noise = fbm.FractionalNoise(0.2, kind)
        drawn = np.asarray(noise.sample(at, key=key, paths=paths))
        want = np.asarray(noise.exact_covariance(at[:, None], at[None, :]))
        got = drawn.T @ drawn / paths
        spread = np.sqrt((want**2 + np.outer(np.diag(want), np.diag(want))) / paths)
        assert np.all(np.abs(got - want) < 5 * spread)
    assert_allclose(noise.sample([0.0, 1.0], key=key)[:, 0], 0.0)
    mvn = fbm.FractionalNoise(0.2, normalize="mvn")
    assert_allclose(mvn.exact_variogram(1.0), own_variance("I", 0.2), rtol=1e-10)


@pytest.mark.parametrize(("kind", "hurst"), [("I", 0.3), ("I", 0.8), ("II", 0.7)])
def test_covariance_of_the_approximation(kind, hurst):
    """The bank's own formula, the formula of increments, and the process it stands for."""
    noise = fbm.FractionalNoise(hurst, kind, horizon=3.0, normalize="mvn")
    s, t = np.array([0.02, 0.5, 2.9]), np.array([0.5, 0.5, 1.0])
    assert_allclose(noise.covariance(s, t), noise.exact_covariance(s, t), rtol=0.015)
    assert_allclose(noise.variogram(s, t), noise.exact_variogram(s, t), rtol=0.015)
    if kind == "I":  # increments are stationary, exactly
        assert_allclose(noise.variogram(s, t), noise.variogram(s), rtol=1e-10)
    bank = noise.bank()
    factor = bank.initial_factor()
    assert_allclose(factor @ factor.T, bank.stationary(), atol=1e-14)
    # A rate of 0 aside, the covariance of kind II is an integral over the common noise.
    if kind == "II":
        u = (np.arange(200_000) + 0.5) / 200_000 * 0.4
        response = lambda t: np.exp(-np.outer(t - u, bank.rates)) @ (bank.weights * bank.scales)
        assert_allclose(
            bank.covariance(jnp.array(0.4), jnp.array(1.1)),
            np.mean(response(0.4) * response(1.1)) * 0.4,
            rtol=1e-6,
        )


def test_scale_start_drivers_and_rates(key):
    unit, mvn = fbm.FractionalNoise(0.3), fbm.FractionalNoise(0.3, normalize="mvn")
    for times in (np.array([0.5, 1.0, 1.5]), np.array([0.5, 1.1, 2.5])):
        drawn = unit.sample(times, key=key)
        assert_allclose(mvn.sample(times, key=key), drawn * own_variance("I", 0.3) ** 0.5)
        assert_allclose(unit.sample(times + 5.0, key=key, start=5.0), drawn, rtol=1e-8)
    prior = fbm.FractionalNoise(dist.Beta(2.0, 2.0), drivers=3)
    assert prior.sample_prior(key).hurst.shape == (3,)
    # Four times as many times ask for rates four times as large.
    assert_allclose(unit.bank(1.0, 1000).rates[-1], 4 * unit.bank(1.0, 250).rates[-1])


def test_self_similar_and_differentiable_in_h():
    h = 0.3
    one, ten = fbm.FractionalNoise(h, horizon=1.0), fbm.FractionalNoise(h, horizon=10.0)
    assert_allclose(
        ten.covariance(4.0, 10.0), 10 ** (2 * h) * one.covariance(0.4, 1.0), rtol=1e-10
    )
    covariance = lambda h: fbm.FractionalNoise(h, horizon=1.0).covariance(0.5, 1.0)
    slope = jax.grad(covariance)(jnp.asarray(h))
    assert_allclose(slope, (covariance(h + 1e-5) - covariance(h - 1e-5)) / 2e-5, rtol=1e-5)
    exact = lambda h: fbm.FractionalNoise(h).exact_covariance(0.5, 1.0)
    assert_allclose(slope, jax.grad(exact)(jnp.asarray(h)), atol=0.02)


def test_report_in_words_and_numbers():
    good = fbm.FractionalNoise(0.7).error_report(horizon=2.0)
    assert good.good
    assert good.misfit < 0.01
    assert "right to" in str(good)
    poor = fbm.FractionalNoise(0.1, nodes=5, span=(0.05, 20), zero=False, weights="l2")
    report = poor.error_report(horizon=1.0)
    assert_allclose(report.path_error, 0.554, atol=6e-4)
    assert not report.good
    assert "poor" in str(report)
    assert "Remedy" in str(report)
    # Brownian paths at short lags: their standard deviation is the sum of the weights.
    brownian = fbm.FractionalNoise(0.5).error_report(horizon=7.0)
    assert_allclose(brownian.diffusivity, 1.0, rtol=1e-6)
    # The same numbers by the bank itself, at lags up to twice the horizon.
    noise = fbm.FractionalNoise(0.3, horizon=2.0, normalize="mvn")
    report, bank = noise.error_report(), noise.bank()
    lags = np.append(np.geomspace(report.resolution, 4.0, 60), report.worst_lag)
    apart = np.abs(np.log(noise.variogram(lags) / noise.exact_variogram(lags)))
    assert_allclose(report.misfit, np.expm1(apart.max()), rtol=1e-6)
    assert_allclose(report.misfit, np.expm1(apart[-1]), rtol=1e-6)
    assert_allclose(report.diffusivity, bank.weights @ bank.scales, rtol=1e-9)
    assert_allclose(report.brownian_lag, 1 / bank.rates[-1], rtol=1e-9)
    assert_allclose(report.resolution, 2 / bank.rates[-1], rtol=1e-9)
    # Of kind II also variances from the start on, and of increments that end at 1 and 2.
    noise = fbm.FractionalNoise(0.3, "II", horizon=2.0)
    report = noise.error_report()
    lags = np.geomspace(report.resolution, 4.0, 60)
    short = lags[lags < 1.0]
    pairs = [(lags, 0 * lags), (short, 2.0 - short), (short, 4.0 - short)]
    ratios = [noise.variogram(*pair) / noise.exact_variogram(*pair) for pair in pairs]
    assert_allclose(report.misfit, np.expm1(np.abs(np.log(np.hstack(ratios))).max()), rtol=1e-6)
    # Of Brownian motion and one process of rate x their correlation is a closed form.
    x = np.sqrt(0.01 * 500)
    rho = np.sqrt(2 * (1 + np.expm1(-x) / x) / x)
    two = fbm.FractionalNoise(0.3, nodes=2).error_report(horizon=3.0)
    assert_allclose(two.condition, (1 + rho) / (1 - rho), rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"hurst": 1.2}, "`hurst` must be above 0 and below 1"),
        ({"hurst": 0.0}, "`hurst` must be above 0 and below 1"),
        ({"hurst": np.array([0.3, np.nan])}, "`hurst`"),
        ({"hurst": "rough"}, "`hurst`"),
        ({"hurst": dist.Normal(0.5, 0.1)}, r"on \(0, 1\)"),
        ({"hurst": wh.latent(dist.LogNormal(0.0, 1.0))}, r"on \(0, 1\)"),
        ({"kind": "III"}, "`kind` must be one of"),
        ({"normalize": "none"}, "`normalize` must be one of"),
        ({"weights": "best"}, "`weights` must be one of"),
        ({"nodes": 1}, "`nodes` must be"),
        ({"span": (5.0, 1.0)}, "`span` must be two increasing"),
        ({"span": 3.0}, "`span` must be two"),
        ({"horizon": 0.0}, "`horizon` must be"),
    ],
)
def test_arguments_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        fbm.FractionalNoise(**arguments)


def test_what_is_missing_is_named(key):
    with pytest.raises(ValueError, match="no value yet"):
        fbm.FractionalNoise(dist.Beta(2, 2), horizon=1.0).covariance(0.1, 0.2)
    with pytest.raises(ValueError, match="horizon=T"):
        fbm.FractionalNoise(0.3).covariance(0.1, 0.2)
    with pytest.raises(ValueError, match="repeat"):
        fbm.FractionalNoise(0.3).sample([1.0, 1.0], key=key)
    with pytest.raises(ValueError, match="not sorted"):
        fbm.FractionalNoise(0.3).sample([1.0, 0.5], key=key)
    with pytest.raises(ValueError, match="one for each driver"):
        fbm.FractionalNoise(np.array([0.3, 0.4]), horizon=1.0).error_report()
    with jax.numpy_dtype_promotion("standard"):  # beyond the tables: no number
        outside = jax.vmap(lambda h: fbm.FractionalNoise(h, horizon=1.0).covariance(1.0, 1.0))
        assert np.isnan(outside(jnp.array([0.9999, 0.3]))).tolist() == [True, False]
