"""Metrics: linear maps and their transposes, and how they are estimated."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.inference.hmc._estimate import (
    AutoEstimator,
    CovarianceEstimator,
    FisherEstimator,
    LowRankEstimator,
    VarianceEstimator,
    fisher_factor,
    fisher_scale,
    window,
)
from whence.inference.hmc._linalg import cholesky, orthogonalise
from whence.inference.hmc._metric import (
    DenseMetric,
    DiagonalMetric,
    LowRankMetric,
    kinetic_energy,
    sample_momentum,
    shrink,
    welford,
)

METRICS = {
    "diagonal": DiagonalMetric(jnp.asarray([0.5, 2.0, 3.0])),
    "dense": DenseMetric(jr.normal(jr.key(0), (3, 3))),
    "low rank": LowRankMetric(
        jnp.asarray([0.5, 2.0, 3.0]),
        jnp.asarray([[0.6, 0.0], [0.8, 0.0], [0.0, 1.0]]),
        jnp.asarray([7.0, 0.1]),
    ),
}


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_adjoint_is_the_transpose(metric):
    forward = jax.vmap(metric.forward)(jnp.eye(3)).T
    adjoint = jax.vmap(metric.adjoint)(jnp.eye(3)).T
    assert_allclose(adjoint, forward.T, rtol=1e-14)


def test_momentum_is_standard_normal(key):
    momentum = jax.vmap(lambda k: sample_momentum(k, jnp.zeros(4)))(jr.split(key, 5000))
    energy = jax.vmap(kinetic_energy)(momentum)
    # Twice the kinetic energy is chi-squared with 4 degrees of freedom.
    assert abs(np.mean(energy) - 2.0) < 5 * np.sqrt(2.0 / 5000)
    assert abs(np.mean(momentum)) < 5 / np.sqrt(20_000)


@pytest.mark.parametrize("dense", [False, True])
def test_welford_against_numpy(dense, key):
    x = 1e4 + jr.normal(key, (50, 3)) @ jnp.asarray([[1.0, 2, 0], [0, 1, 3], [0, 0, 1]])
    moments = welford(x[0], dense=dense)
    for row in x:
        moments = moments.update(row)
    truth = np.cov(np.asarray(x).T)
    assert_allclose(moments.covariance(), truth if dense else np.diag(truth), rtol=1e-8)
    assert_allclose(moments.mean, np.mean(x, axis=0))


def test_shrink_as_in_stan():
    covariance = jnp.asarray([[4.0, 1.0], [1.0, 9.0]])
    weights = 15 / 20 * covariance + 1e-3 * 5 / 20 * jnp.eye(2)
    assert_allclose(shrink(covariance, jnp.asarray(15.0)), weights)
    diagonal = shrink(jnp.diag(covariance), jnp.asarray(15.0))
    assert_allclose(diagonal, jnp.diag(weights))


@pytest.mark.parametrize("dim", [1, 2, 7, 30])
def test_cholesky(dim, key):
    root = jr.normal(key, (dim, dim + 2))
    assert_allclose(cholesky(root @ root.T), np.linalg.cholesky(root @ root.T), rtol=1e-9)


def test_cholesky_of_an_indefinite_matrix_is_not_finite():
    assert not np.all(np.isfinite(cholesky(jnp.asarray([[1.0, 2.0], [2.0, 1.0]]))))


@pytest.mark.parametrize("dim", [1, 2, 9])
def test_orthogonalise(dim, key):
    scales = jnp.logspace(0, -6, dim)
    rows = jr.normal(key, (dim, dim)) * scales[:, None]
    result = np.asarray(orthogonalise(rows))
    gram = result @ result.T
    norms = np.sqrt(np.diag(gram))
    assert_allclose(gram / np.outer(norms, norms), np.eye(dim), atol=1e-12)
    assert_allclose(np.sort(norms)[::-1], np.linalg.svd(rows)[1], rtol=1e-9)
    assert_allclose(result.T @ result, rows.T @ rows, atol=1e-12)


def test_low_rank_metric_in_full():
    metric = METRICS["low rank"]
    v, scale = np.asarray(metric.vectors), np.asarray(metric.scale)
    full = np.diag(scale) @ (np.eye(3) + v @ np.diag([6.0, -0.9]) @ v.T)
    assert_allclose(jax.vmap(metric.forward)(jnp.eye(3)).T, full, rtol=1e-12)


def _normal(dim, num_draws, key, condition=1e6, spread=1.0):
    """A covariance, and a window of draws (not exactly from it) with exact gradients."""
    key_basis, key_draws = jr.split(key)
    basis = jnp.linalg.qr(jr.normal(key_basis, (dim, dim)))[0]
    covariance = (basis * jnp.logspace(0, np.log10(condition), dim)) @ basis.T
    draws = (
        5.0
        + spread * jr.normal(key_draws, (num_draws, dim)) @ jnp.linalg.cholesky(covariance).T
    )
    gradients = -jnp.linalg.solve(covariance, draws.T).T
    return covariance, draws, gradients


def _fill(draws, gradients, dense):
    moments = window(draws[0], dense=dense)
    for x, g in zip(draws, gradients, strict=True):
        moments = moments.update(x, g)
    return moments


@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_fisher_factor_is_exact_on_a_normal(spread, key):
    """After `dim + 1` draws, even if these are far from stationary."""
    covariance, draws, gradients = _normal(6, 12, key, condition=30.0, spread=spread)
    factor, dual, spectrum = fisher_factor(_fill(draws, gradients, dense=True))
    assert_allclose(factor @ factor.T, covariance, rtol=0.02, atol=0.02)
    assert_allclose(dual.T @ factor, np.eye(6), atol=1e-6)
    # What is left is how far the draws are from their own distribution, and only that.
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), np.asarray(draws).T)
    truth = np.linalg.eigvalsh(np.cov(whitened))
    assert_allclose(np.sort(spectrum), truth, rtol=0.01, atol=1e-3)


def test_fisher_scale_is_exact_on_independent_normals():
    draws = jnp.asarray([[1.0, 10.0], [2.0, 14.0], [4.0, -3.0]])
    moments = _fill(draws, -draws / jnp.asarray([4.0, 0.25]), dense=False)
    assert_allclose(fisher_scale(moments), [2.0, 0.5])


def test_spectrum_sees_tails(key):
    """Var(x) var(g) is 1 for a normal; for Student's t with 5 degrees it is 5/3 * 6/8."""
    x = jr.t(key, 5.0, (20_000, 1))
    moments = window(x[0], dense=True)
    moments, _ = jax.lax.scan(lambda m, x: (m.update(x, -6 * x / (5 + x**2)), None), moments, x)
    _, _, spectrum = fisher_factor(moments)
    assert_allclose(spectrum[0], np.sqrt(5 / 3 * 6 / 8), rtol=0.05)


def test_auto_takes_dense_where_it_predicts_better(key):
    estimator = AutoEstimator()
    covariance, draws, gradients = _normal(4, 60, key, condition=1e3)
    last = estimator.start(draws[0])
    for part in (slice(0, 20), slice(20, 60)):
        last = estimator.estimate(_fill(draws[part], gradients[part], dense=True), last)
    factor = last.metric.factor
    assert_allclose(factor @ factor.T, covariance, rtol=0.02, atol=0.02)
    assert 1 <= float(last.caution) < 1.5


def test_auto_takes_diagonal_where_dense_misleads(key):
    """Correlations that change from window to window predict nothing."""
    estimator = AutoEstimator()
    last = estimator.start(jnp.zeros(2))
    for number, correlation in enumerate((0.95, -0.95)):
        covariance = jnp.asarray([[1.0, correlation], [correlation, 1.0]])
        noise = jr.normal(jr.fold_in(key, number), (60, 2))
        draws = noise @ jnp.linalg.cholesky(covariance).T
        gradients = -jnp.linalg.solve(covariance, draws.T).T
        last = estimator.estimate(_fill(draws, gradients, dense=True), last)
    factor = np.asarray(last.metric.factor)
    assert_allclose(factor, np.diag(np.diag(factor)))


@pytest.mark.slow
def test_low_rank_finds_the_direction(key):
    """One direction of 100 times the standard deviation, among 70 dimensions."""
    dim, num_draws = 70, 100
    direction = jnp.zeros(dim).at[:2].set(jnp.asarray([0.6, 0.8]))
    noise = jr.normal(key, (num_draws, dim))
    draws = noise + 99 * jnp.outer(noise @ direction, direction)
    gradients = -(noise - 0.99 * jnp.outer(noise @ direction, direction))
    estimator = LowRankEstimator()
    moments = window(draws[0], dense=False, keep=estimator.keep)
    for x, g in zip(draws, gradients, strict=True):
        moments = moments.update(x, g)
    metric = estimator.estimate(moments, estimator.start(draws[0])).metric
    root = jax.vmap(metric.forward)(jnp.eye(dim)).T
    covariance = jnp.eye(dim) + (100.0**2 - 1) * jnp.outer(direction, direction)
    whitened = jnp.linalg.solve(root, jnp.linalg.solve(root, covariance).T)
    values = jnp.linalg.eigvalsh(whitened)
    # A diagonal alone leaves a condition number in the hundreds.
    assert values[-1] / values[0] < 10


@pytest.mark.parametrize(
    "estimator",
    [
        VarianceEstimator(),
        FisherEstimator(),
        CovarianceEstimator(),
        LowRankEstimator(),
        AutoEstimator(),
    ],
    ids=["variance", "fisher", "covariance", "low rank", "auto"],
)
def test_a_chain_that_did_not_move_leaves_a_usable_metric(estimator):
    x = jnp.ones(3)
    moments = window(x, dense=estimator.needs_covariance, keep=estimator.keep)
    for _ in range(10):
        moments = moments.update(x, x)
    estimate = estimator.estimate(moments, estimator.start(x))
    velocity = estimate.metric.forward(jnp.ones(3))
    assert np.all(np.isfinite(velocity))
    assert np.all(np.abs(velocity) > 0)
    assert np.isfinite(estimate.caution)
