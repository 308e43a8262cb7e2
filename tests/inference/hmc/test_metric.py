"""Metrics: linear maps and their transposes, and how they are estimated."""

import math
from contextlib import suppress

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.inference.hmc import _estimate
from whence.inference.hmc._estimate import (
    AbstractEstimator,
    AutoEstimator,
    CovarianceEstimator,
    DiagonalEstimator,
    LowRankEstimator,
    Moments,
    finite_estimate,
    fisher_factor,
    fisher_scale,
    moments,
)
from whence.inference.hmc._metric import (
    DenseMetric,
    DiagonalMetric,
    LowRankMetric,
    Welford,
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


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_dual_whitens(metric):
    metric = jax.tree.map(np.asarray, metric)
    identity = jax.vmap(lambda p: metric.dual().adjoint(metric.forward(p)))(jnp.eye(3))
    assert_allclose(identity, np.eye(3), atol=1e-12)


def test_momentum_is_standard_normal(key):
    momentum = jax.vmap(lambda k: sample_momentum(k, jnp.zeros(4)))(jr.split(key, 5000))
    energy = jax.vmap(kinetic_energy)(momentum)
    # Twice the kinetic energy is chi-squared with 4 degrees of freedom.
    assert abs(np.mean(energy) - 2.0) < 5 * np.sqrt(2.0 / 5000)
    assert abs(np.mean(momentum)) < 5 / np.sqrt(20_000)


@pytest.mark.parametrize("dense", [False, True])
def test_welford_against_numpy(dense, key):
    x = 1e4 + jr.normal(key, (50, 3)) @ jnp.asarray([[1.0, 2, 0], [0, 1, 3], [0, 0, 1]])
    found = welford(x[0], dense=dense)
    for row in x:
        found = found.update(row)
    truth = np.cov(np.asarray(x).T)
    covariance = found.deviations / (found.count - 1)
    assert_allclose(covariance, truth if dense else np.diag(truth), rtol=1e-8)
    assert_allclose(found.mean, np.mean(x, axis=0))


def test_shrink_as_in_stan():
    covariance = np.asarray([[4.0, 1.0], [1.0, 9.0]])
    weights = 15 / 20 * covariance + 1e-3 * 5 / 20 * np.eye(2)
    assert_allclose(shrink(covariance, 15.0), weights)
    assert_allclose(shrink(np.diag(covariance), 15.0), np.diag(weights))


def test_low_rank_metric_in_full():
    metric = METRICS["low rank"]
    v, scale = np.asarray(metric.vectors), np.asarray(metric.scale)
    full = np.diag(scale) @ (np.eye(3) + v @ np.diag([6.0, -0.9]) @ v.T)
    assert_allclose(jax.vmap(metric.forward)(jnp.eye(3)).T, full, rtol=1e-12)


def fill(estimator, draws, gradients):
    """What an estimator is told of draws and gradients."""
    empty = moments(draws[0], estimator)
    return jax.lax.scan(lambda m, pair: (m.update(*pair), None), empty, (draws, gradients))[0]


def _normal(dim, num_draws, key, condition=1e6, spread=1.0):
    """A covariance, and a window of draws (not exactly from it) with exact gradients."""
    key_basis, key_draws = jr.split(key)
    basis = jnp.linalg.qr(jr.normal(key_basis, (dim, dim)))[0]
    covariance = (basis * jnp.logspace(0, np.log10(condition), dim)[None]) @ basis.T
    draws = (
        5.0
        + spread * jr.normal(key_draws, (num_draws, dim)) @ jnp.linalg.cholesky(covariance).T
    )
    gradients = -jnp.linalg.solve(covariance, draws.T).T
    return covariance, draws, gradients


def _fill(draws, gradients, dense):
    return fill(AutoEstimator() if dense else DiagonalEstimator(), draws, gradients)


@pytest.mark.parametrize("estimator", [AutoEstimator(), LowRankEstimator()])
def test_several_chains_at_once(estimator, key):
    """Chains that are not to be kept count for nothing; the last draws are at hand."""
    x, keep = jr.normal(key, (30, 7, 3)), jnp.arange(7) != 2
    found = moments(x[0, 0], estimator)
    for chains in x:
        found = found.update_all(chains, -chains, keep)
    kept = x[:, np.asarray(keep)].reshape(-1, 3)
    one_by_one = fill(estimator, kept, -kept)
    assert_allclose(found.draws.count, one_by_one.draws.count)
    assert_allclose(found.draws.mean, one_by_one.draws.mean, atol=1e-12)
    assert_allclose(found.gradients.deviations, one_by_one.gradients.deviations)
    if estimator.keep:
        ordered = [np.sort(w.recent.reshape(-1)) for w in (found, one_by_one)]
        assert_allclose(*ordered)


@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_fisher_factor_is_exact_on_a_normal(spread, key):
    """After `dim + 1` draws, even if these are far from stationary."""
    covariance, draws, gradients = _normal(6, 12, key, condition=30.0, spread=spread)
    factor, dual = fisher_factor(_fill(draws, gradients, dense=True))
    assert_allclose(factor @ factor.T, covariance, rtol=0.02, atol=0.02)
    assert_allclose(dual.T @ factor, np.eye(6), atol=1e-6)


def test_fisher_scale_is_exact_on_independent_normals():
    draws = jnp.asarray([[1.0, 10.0], [2.0, 14.0], [4.0, -3.0]])
    window = _fill(draws, -draws / jnp.asarray([[4.0, 0.25]]), dense=False)
    assert_allclose(fisher_scale(window), [2.0, 0.5])


def test_variances_of_draws_once_there_are_many(key):
    """Of Student's t with 5 degrees the variance is 5/3, that of the gradient 6/8."""
    estimator = DiagonalEstimator()
    start, memory = estimator.start(jnp.zeros(1))
    x = jr.t(key, 5.0, (20_000, 1))
    gradients = -6 * x / (5 + x**2)
    few = _fill(x[:90], gradients[:90], dense=False)
    assert_allclose(estimator.estimate(few, start, memory)[0].scale, fisher_scale(few))
    many = _fill(x, gradients, dense=False)
    scale = estimator.estimate(many, start, memory)[0].scale
    assert_allclose(scale, np.sqrt(5 / 3), rtol=0.05)
    assert_allclose(fisher_scale(many), (5 / 3 / (6 / 8)) ** 0.25, rtol=0.05)


def test_auto_takes_dense_where_it_predicts_better(key):
    estimator = AutoEstimator()
    covariance, draws, gradients = _normal(4, 60, key, condition=1e3)
    last = estimator.start(draws[0])
    for part in (slice(0, 20), slice(20, 60)):
        last = estimator.estimate(_fill(draws[part], gradients[part], dense=True), *last)
    factor = last[0].factor
    assert_allclose(factor @ factor.T, covariance, rtol=0.02, atol=0.02)


def test_auto_takes_diagonal_where_dense_misleads(key):
    """Correlations that change from window to window predict nothing."""
    estimator = AutoEstimator()
    last = estimator.start(jnp.zeros(2))
    for number, correlation in enumerate((0.95, -0.95)):
        covariance = jnp.asarray([[1.0, correlation], [correlation, 1.0]])
        noise = jr.normal(jr.fold_in(key, number), (60, 2))
        draws = noise @ jnp.linalg.cholesky(covariance).T
        gradients = -jnp.linalg.solve(covariance, draws.T).T
        last = estimator.estimate(_fill(draws, gradients, dense=True), *last)
    factor = np.asarray(last[0].factor)
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
    window = fill(estimator, draws, gradients)
    metric, _ = estimator.estimate(window, *estimator.start(draws[0]))
    root = jax.vmap(metric.forward)(jnp.eye(dim)).T
    covariance = jnp.eye(dim) + (100.0**2 - 1) * jnp.outer(direction, direction)
    whitened = jnp.linalg.solve(root, jnp.linalg.solve(root, covariance).T)
    values = jnp.linalg.eigvalsh(whitened)
    # A diagonal alone leaves a condition number in the hundreds.
    assert values[-1] / values[0] < 10


@pytest.mark.parametrize(
    "estimator",
    [
        DiagonalEstimator(many=0.0),
        DiagonalEstimator(many=math.inf),
        CovarianceEstimator(),
        LowRankEstimator(),
        AutoEstimator(),
        DiagonalEstimator(),
    ],
    ids=["variance", "fisher", "covariance", "low rank", "auto", "diagonal"],
)
def test_a_chain_that_did_not_move_gives_no_wrong_metric(estimator):
    """What is not finite is not used; see the tests of warm-up."""
    x = jnp.ones((10, 3))
    metric, memory = estimator.start(x[0])
    with np.errstate(all="ignore"), suppress(np.linalg.LinAlgError):
        metric, _ = estimator.estimate(fill(estimator, x, x), metric, memory)
    root = np.asarray(jax.vmap(metric.forward)(jnp.eye(3)))
    finite = np.isfinite(root).all()
    assert not finite or np.linalg.matrix_rank(root) == 3


class Singular(AbstractEstimator):
    """Gives a finite matrix without an inverse, as draws within 1e-9 of each other may."""

    needs_covariance: bool = False
    keep: int = 0

    def start(self, like):
        return DenseMetric(jnp.eye(like.size)), None

    def estimate(self, window, metric, memory):
        return DenseMetric(jnp.ones((3, 3))), memory


def test_a_metric_without_an_inverse_is_not_used():
    estimator, x = Singular(), jnp.ones((10, 3))
    metric, memory = estimator.start(x[0])
    found, _ = finite_estimate(estimator, fill(estimator, x, x), metric, memory)
    assert found is metric


def test_divergences_of_a_window():
    """Of x and its gradient g under scales s: sum of var(g) s^2 + var(x) / s^2."""
    rng = np.random.default_rng(3)
    draws, gradients = rng.normal(size=(2, 12, 3)) * np.array([1.0, 3.0, 0.2])
    summed = lambda x: Welford(
        jnp.asarray(12.0), jnp.asarray(x.mean(0)), jnp.asarray(11 * np.cov(x.T))
    )
    window = Moments(summed(draws), summed(gradients))
    scale = np.array([0.5, 2.0, 1.5])
    candidates = _estimate._Candidates(
        *map(jnp.asarray, (scale, np.diag(scale), np.diag(1 / scale)))
    )
    want = (gradients.var(0, ddof=1) * scale**2 + draws.var(0, ddof=1) / scale**2).sum()
    assert_allclose(_estimate._diagonal_divergence(candidates, window), want, rtol=1e-12)
    assert_allclose(_estimate._dense_divergence(candidates, window), want, rtol=1e-12)
