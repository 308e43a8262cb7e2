"""The exact moments and evidence that targets claim, against quadrature and brute force."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from whence import testing as wt


def grid_moments(target, name, axis, positions, spacing):
    """Normalising constant and moments of one variable by the trapezoidal rule."""
    log_density = jax.vmap(target.log_density)(positions)
    weights = np.exp(np.asarray(log_density)) * spacing
    values = np.asarray(jax.vmap(target.constrain)(positions)[name])[:, axis]
    total = weights.sum()
    mean = (weights * values).sum() / total
    return total, mean, np.sqrt((weights * (values - mean) ** 2).sum() / total)


def plane(low, high, count):
    """Points of a square grid, and the area of a cell."""
    axis = np.linspace(low, high, count)
    points = np.stack([x.ravel() for x in np.meshgrid(axis, axis, indexing="ij")], axis=1)
    return jnp.asarray(points), (axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("correlated", [False, True])
def test_gaussian(correlated):
    target = wt.Gaussian(2, condition_number=25.0, correlated=correlated)
    points, cell = plane(-8.0, 10.0, 500)
    for axis in range(2):
        total, mean, sd = grid_moments(target, "x", axis, points, cell)
        truth = target.truth["x"]
        assert_allclose((total, mean, sd), (1, truth.mean[axis], truth.sd[axis]), rtol=1e-6)


def test_gaussian_density_and_condition_number(key):
    target = wt.Gaussian(5, condition_number=1e4, correlated=True)
    position = target.init(key=key)
    expected = stats.multivariate_normal.logpdf(
        np.asarray(position), np.asarray(target.mean), np.asarray(target.covariance)
    )
    assert_allclose(target.log_density(position), expected, rtol=1e-8)
    assert_allclose(np.linalg.cond(target.covariance), 1e4, rtol=1e-6)
    assert np.abs(np.corrcoef(target.covariance)[0, 1:]).max() > 0.1


@pytest.mark.parametrize("name", ["x", "gamma"])
def test_log_gamma(name):
    target = wt.LogGamma((1.0, 4.0))
    # The left tail of log Gamma(1) falls as exp(x) only.
    points, cell = plane(-22.0, 6.0, 800)
    for axis in range(2):
        total, mean, sd = grid_moments(target, name, axis, points, cell)
        truth = target.truth[name]
        assert_allclose((total, mean, sd), (1, truth.mean[axis], truth.sd[axis]), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_funnel(scale, key):
    target = wt.Funnel(3, scale=scale)
    key_v, key_z = jr.split(key)
    v = scale * jr.normal(key_v, (200_000,))
    x = jnp.exp(v / 2)[:, None] * jr.normal(key_z, (200_000, 3))
    draws = jax.vmap(target.constrain)({"v": v, "x": x})
    draws = {name: value.reshape(4, 50_000, *value.shape[1:]) for name, value in draws.items()}
    # Eight comparisons of independent draws: 4.5 is exceeded once in 20,000 keys.
    wt.compare_moments(draws, target.truth).check(max_z=4.5, min_ess=100_000.0)
    position = target.init(key=key)
    expected = stats.norm.logpdf(position["v"], 0, scale)
    expected += stats.norm.logpdf(position["x"], 0, np.exp(position["v"] / 2)).sum()
    assert_allclose(target.log_density(position), expected, rtol=1e-10)


def test_autoregression(key):
    target = wt.Autoregression(100, correlation=0.95)
    position = target.init(key=key)
    expected = stats.multivariate_normal.logpdf(position, np.zeros(100), target.covariance)
    assert_allclose(target.log_density(position), expected, rtol=1e-8)
    assert_allclose(np.sqrt(np.diag(target.covariance)), target.truth["x"].sd)


def test_gaussian_mean(key):
    target = wt.GaussianMean.simulate(8, 2, key=key)
    points, cell = plane(-9.0, 9.0, 700)
    for axis in range(2):
        total, mean, sd = grid_moments(target, "theta", axis, points, cell)
        truth = target.truth["theta"]
        assert_allclose(np.log(total), target.log_evidence, rtol=1e-6)
        assert_allclose((mean, sd), (truth.mean[axis], truth.sd[axis]), rtol=1e-5)


def test_conjugate_regression(key):
    target = wt.ConjugateRegression.simulate(12, 1, key=key)
    beta, log_variance = np.meshgrid(
        np.linspace(-4, 6, 700), np.linspace(-4, 5, 700), indexing="ij"
    )
    cell = 10 / 699 * 9 / 699
    positions = {
        "beta": jnp.asarray(beta.reshape(-1, 1)),
        "log_variance": jnp.asarray(log_variance.ravel()),
    }
    log_density = np.asarray(jax.vmap(target.log_density)(positions))
    weights = np.exp(log_density - log_density.max()) * cell
    assert_allclose(np.log(weights.sum()) + log_density.max(), target.log_evidence, rtol=1e-6)
    weights /= weights.sum()
    draws = jax.vmap(target.constrain)(positions)
    for name, truth in target.truth.items():
        values = np.asarray(draws[name]).ravel()
        mean = (weights * values).sum()
        sd = np.sqrt((weights * (values - mean) ** 2).sum())
        assert_allclose((mean, sd), (truth.mean.item(), truth.sd.item()), rtol=1e-4)


def test_conjugate_regression_evidence_is_that_of_a_student(key):
    # The data alone are Student t with 2a degrees of freedom (Bishop 2006, section 2.3.7).
    target = wt.ConjugateRegression.simulate(12, 3, key=key)
    x, y, a, b = target.x, target.y, float(target.shape), float(target.rate)
    spread = b / a * (np.eye(12) + float(target.prior_sd) ** 2 * x @ x.T)
    expected = stats.multivariate_t.logpdf(y, np.zeros(12), np.asarray(spread), df=2 * a)
    assert_allclose(target.log_evidence, expected, rtol=1e-8)


@pytest.mark.parametrize(
    "make", [wt.GaussianMean.simulate, wt.ConjugateRegression.simulate], ids=["mean", "line"]
)
def test_data_targets_are_products_over_rows(make, key):
    target = make(key=key)
    position = target.init(key=key)
    every = target.log_likelihood(position)
    assert every.shape == (target.num_data,)
    assert_allclose(target.log_density(position), target.log_prior(position) + every.sum())
    rows = jnp.array([3, 0, 3])
    assert_allclose(target.log_likelihood(position, rows), every[rows])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: wt.Gaussian(0), "`dim` must be at least 1; got 0"),
        (lambda: wt.Gaussian(condition_number=0.5), "`condition_number` must be at least 1"),
        (lambda: wt.LogGamma((1.0, -1.0)), "`shape` must be positive"),
        (lambda: wt.Funnel(scale=0.0), "`scale` must be positive and finite; got 0"),
        (
            lambda: wt.Autoregression(correlation=1.0),
            "`correlation` must be above -1 and below 1",
        ),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()
