"""Normal-inverse-Wishart laws: golden values, Monte Carlo, and what one dimension has."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from whence.models.niw import NIW, ProductNIW

SCALE = np.array([[2, 0.3, 0.1], [0.3, 1.5, -0.2], [0.1, -0.2, 0.8]])
LAW = NIW([0.5, -1.0, 0.2], 2.5, SCALE, 7.5)
MEAN, COV = np.array([1.0, 0.0, -0.5]), np.diag([0.3, 0.5, 0.2]) + 0.05
PRODUCT = ProductNIW([0.5, -1.0, 0.2], 2.5, np.diag(SCALE), 7.5)


def test_golden():
    """Values of an independent NumPy derivation, checked by 2e5 draws there."""
    assert_allclose(LAW.expected_kl(MEAN, COV), 6.253225554, rtol=1e-9)
    other = NIW(np.zeros(3), 0.7, 1.2 * np.eye(3), 5.0)
    assert_allclose(LAW.kl(other), 5.127755758, rtol=1e-9)
    mean, variance = (
        np.array([1.16666667, -0.66666667, 0.13924051]),
        np.array([0.14814815, 0.16666667, 0.10126582]),
    )
    assert_allclose(PRODUCT.expected_kl(mean, variance), 2.0174056763, rtol=1e-7)


def _kl_normals(mean, cov, mu, sigma):
    inverse, gap = np.linalg.inv(sigma), mean - mu
    logs = np.linalg.slogdet(sigma)[1] - np.linalg.slogdet(cov)[1]
    trace = np.einsum("...ij,ji->...", inverse, cov)
    return (logs - len(mean) + trace + np.einsum("...i,...ij,...j", gap, inverse, gap)) / 2


def _within(values, want, errors=4.5):
    error = np.std(values, axis=0) / np.sqrt(len(values))
    assert np.all(np.abs(np.mean(values, axis=0) - want) < errors * error + 1e-12)


def test_expectations_by_draws():
    keys = jr.split(jr.key(0), 20_000)
    draw = jax.jit(jax.vmap(lambda k: (LAW.sample(key=k), PRODUCT.sample(key=k))))
    (mu, sigma), product = jax.tree.map(np.asarray, draw(keys))
    _within(_kl_normals(MEAN, COV, mu, sigma), LAW.expected_kl(MEAN, COV))
    _within(np.linalg.inv(sigma), LAW.expected_precision)
    _within(sigma, SCALE / (7.5 - 3 - 1))
    _within(np.log(np.linalg.det(sigma)), _expected_log_det())
    mu, variance = product
    each = _kl_normals(MEAN, np.diag(np.diag(COV)), mu, np.eye(3) * variance[:, None])
    _within(each, PRODUCT.expected_kl(MEAN, np.diag(COV)))
    _within(1 / variance, PRODUCT.expected_precision)
    _within((mu - PRODUCT.mean) ** 2 * 2.5 / variance, 1.0)


def _expected_log_det():
    from scipy.special import digamma

    digammas = digamma((7.5 - np.arange(3)) / 2).sum()
    return np.log(np.linalg.det(SCALE)) - 3 * np.log(2) - digammas


def _log_density(law, mu, sigma):
    wishart = stats.invwishart(float(law.df), np.asarray(law.scale)).logpdf(sigma)
    normal = stats.multivariate_normal(law.mean, sigma / float(law.strength))
    return wishart + normal.logpdf(mu)


def test_divergence_by_draws_of_scipy():
    other = NIW(np.zeros(3), 0.7, 1.2 * np.eye(3), 5.0)
    rng = np.random.default_rng(1)
    sigma = stats.invwishart(7.5, SCALE).rvs(1_000, random_state=rng)
    mu = [rng.multivariate_normal(LAW.mean, s / 2.5) for s in sigma]
    gaps = [_log_density(LAW, m, s) - _log_density(other, m, s) for m, s in zip(mu, sigma)]
    _within(np.array(gaps), LAW.kl(other))
    assert_allclose(LAW.kl(LAW), 0, atol=1e-12)


def test_product_is_the_law_of_each_weight():
    other = ProductNIW([0.1, 0.2, 0.3], 0.7, [1.0, 1.2, 0.4], 5.0)
    ones = [
        (NIW([m], law.strength, [[s]], law.df))
        for law in (PRODUCT, other)
        for m, s in zip(law.mean, law.scale)
    ]
    assert_allclose(PRODUCT.kl(other), sum(ones[i].kl(ones[i + 3]) for i in range(3)))
    each = [
        one.expected_kl(jnp.array([m]), jnp.array([[v]]))
        for one, m, v in zip(ones, MEAN, np.diag(COV))
    ]
    assert_allclose(PRODUCT.expected_kl(MEAN, np.diag(COV)), sum(each))
    assert_allclose(PRODUCT.mode, [one.mode[0, 0] for one in ones[:3]])
    assert_allclose(PRODUCT.expected_precision, [o.expected_precision[0, 0] for o in ones[:3]])
    values = np.array([0.3, -0.2, 1.0])
    t = [o.predictive.log_prob(values[i : i + 1]) for i, o in enumerate(ones[:3])]
    assert_allclose(PRODUCT.predictive.log_prob(values), sum(t))


def test_mode_and_predictive():
    best = _log_density(LAW, np.asarray(LAW.mean), np.asarray(LAW.mode))
    rng = np.random.default_rng(2)
    for _ in range(20):
        step = 0.05 * rng.normal(size=(3, 3))
        moved = np.asarray(LAW.mode) @ (np.eye(3) + step)
        assert _log_density(LAW, np.asarray(LAW.mean), (moved + moved.T) / 2) < best
    # The density of t at a point is the mean of normal ones.
    keys = jr.split(jr.key(3), 20_000)
    mu, sigma = map(np.asarray, jax.jit(jax.vmap(lambda k: LAW.sample(key=k)))(keys))
    gap = np.array([0.4, -0.5, 0.1]) - mu
    exponent = np.einsum("ti,tij,tj->t", gap, np.linalg.inv(sigma), gap) / 2
    densities = np.exp(-exponent) / np.sqrt(np.linalg.det(2 * np.pi * sigma))
    t = LAW.predictive.log_prob(np.array([0.4, -0.5, 0.1]))
    _within(densities, np.exp(t))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: NIW(np.zeros(3), 1.0, np.eye(3), 2.0), "`df` must be above d - 1 = 2"),
        (lambda: NIW(np.zeros(3), 0.0, np.eye(3), 5.0), "`strength` must be positive; got 0.0"),
        (lambda: NIW(np.zeros(3), 1.0, -np.eye(3), 5.0), "`scale` must be positive definite"),
        (lambda: NIW(np.zeros(3), 1.0, np.ones(3), 5.0), "`scale` must have shape"),
        (lambda: ProductNIW([0.0], 1.0, [1.0], 0.0), "`df` must be positive; got 0.0"),
        (lambda: ProductNIW([0.0], 1.0, [-1.0], 1.0), "`scale` must be positive; got -1"),
        (lambda: ProductNIW([0.0], 1.0, [1.0, 2.0], 1.0), "`scale` must have the shape"),
    ],
)
def test_wrong_laws_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_few_degrees_of_freedom_over_many_weights_are_for_products():
    law = ProductNIW(np.zeros(1000), 1.0, np.ones(1000), 1.0)
    assert np.isfinite(law.expected_kl(np.zeros(1000), np.ones(1000)))
