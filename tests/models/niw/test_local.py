"""Surrogates and priors: golden values, and dense linear algebra for every structure."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpy.testing import assert_allclose
from scipy import stats

from whence.models import niw
from whence.models.niw._covariance import full
from whence.models.niw._local import Quadratic
from whence.models.niw._meta import TaskLoss

SCALE = np.array([[2, 0.3, 0.1], [0.3, 1.5, -0.2], [0.1, -0.2, 0.8]])
M0, DF = np.array([0.5, -1.0, 0.2]), 7.5
CENTRE = np.array([2.0, 1.0, -1.0])
A = np.array([[3, 0.2, 0], [0.2, 1, 0.1], [0, 0.1, 0.5]])
ZERO = jnp.zeros(())


def _exact(matrix):
    rows = jnp.linalg.cholesky(matrix).T
    return Quadratic(jnp.asarray(CENTRE), ZERO, ZERO, rows=rows, residual=jnp.zeros(len(rows)))


def _matrix(posterior):
    noise = jnp.eye(posterior.noise_size)
    moves = jax.vmap(posterior.move)(noise)
    return np.asarray(moves.T @ moves)


def test_golden():
    combined = _exact(A).combine(jnp.asarray(M0), full(jnp.asarray(SCALE / DF)))
    want = [
        [0.14672985, 0.01366406, 0.00802242],
        [0.01366406, 0.16424674, -0.02374721],
        [0.00802242, -0.02374721, 0.10095678],
    ]
    assert_allclose(combined.posterior.mean, [1.24555493, -0.56548936, 0.14715822], atol=1e-8)
    assert_allclose(_matrix(combined.posterior), want, atol=1e-8)
    diagonal = Quadratic(jnp.asarray(CENTRE), ZERO, ZERO, jnp.diag(A), jnp.zeros(3))
    prior = niw.Diagonal(jnp.asarray(np.log(DF / np.diag(SCALE))))
    combined = diagonal.combine(jnp.asarray(M0), prior)
    assert_allclose(combined.posterior.mean, [1.16666667, -0.66666667, 0.13924051], atol=1e-8)
    variance = [0.14814815, 0.16666667, 0.10126582]
    assert_allclose(combined.posterior.variance, variance, atol=1e-8)
    # The expected divergence adds what the spread of (mu, Sigma) costs at 2.5 and 7.5.
    law = niw.ProductNIW(M0, 2.5, np.diag(SCALE), DF)
    excess = law.expected_kl(combined.posterior.mean, combined.posterior.variance)
    psi = jax.scipy.special.digamma(DF / 2) + jnp.log(2 / DF)
    assert_allclose(excess - combined.kl, 3 * (1 / 2.5 - psi) / 2, rtol=1e-9)


D, RANK = 6, 2


def _covariances():
    rng = np.random.default_rng(0)
    log_precision = jnp.asarray(rng.normal(size=D))
    root = rng.normal(size=(D, D))
    yield "diagonal", niw.Diagonal(log_precision), np.diag(np.exp(-log_precision))
    matrix = root @ root.T + np.eye(D)
    yield "full", full(jnp.asarray(matrix)), matrix
    factor = rng.normal(size=(D, RANK))
    low_rank = np.diag(np.exp(-log_precision)) + factor @ factor.T
    yield "low rank", niw.LowRank(log_precision, jnp.asarray(factor)), low_rank


def _surrogates():
    rng = np.random.default_rng(1)
    centre, value = jnp.asarray(rng.normal(size=D)), jnp.asarray(0.7)
    diagonal, slope = jnp.asarray(rng.gamma(2.0, size=D)), jnp.asarray(rng.normal(size=D))
    rows, residual = jnp.asarray(rng.normal(size=(4, D))), jnp.asarray(rng.normal(size=4))
    none = np.zeros((D, D))
    yield Quadratic(centre, value, ZERO, diagonal, slope), np.diag(diagonal), slope
    by_rows = rows.T @ rows
    one = Quadratic(centre, value, ZERO, rows=rows, residual=residual)
    yield one, none + by_rows, rows.T @ residual
    both = Quadratic(centre, value, ZERO, diagonal, slope, rows, residual)
    yield both, np.diag(diagonal) + by_rows, slope + rows.T @ residual


def test_every_covariance_with_every_surrogate_against_dense_algebra():
    m0 = jnp.asarray(np.random.default_rng(2).normal(size=D))
    for name, covariance, s in _covariances():
        assert_allclose(covariance.times(jnp.eye(D)), s, err_msg=name)
        assert_allclose(covariance.marginal, np.diag(s))
        assert_allclose(covariance.log_det, np.linalg.slogdet(s)[1])
        assert_allclose(covariance.quadratic(m0), m0 @ np.linalg.solve(s, m0))
        root = jax.vmap(covariance.root)(jnp.eye(covariance.noise_size))
        assert_allclose(root.T @ root, s)
        scaled = covariance.scaled(jnp.asarray(2.5))
        assert_allclose(scaled.times(jnp.eye(D)), 2.5 * s)
        for surrogate, a, gradient in _surrogates():
            v = np.linalg.inv(np.linalg.inv(s) + a)
            mean = m0 + v @ (a @ (surrogate.centre - m0) - gradient)
            e = mean - surrogate.centre
            expected = 0.7 + gradient @ e + e @ a @ e / 2 + np.trace(a @ v) / 2
            inverse, gap = np.linalg.inv(s), mean - m0
            logs = np.linalg.slogdet(s)[1] - np.linalg.slogdet(v)[1]
            kl = (logs - D + np.trace(inverse @ v) + gap @ inverse @ gap) / 2
            found = surrogate.combine(m0, covariance)
            assert_allclose(found.posterior.mean, mean, rtol=1e-7)
            assert_allclose(_matrix(found.posterior), v, rtol=1e-6, atol=1e-9)
            assert_allclose(found.posterior.times(jnp.eye(D)), v, rtol=1e-6, atol=1e-9)
            assert_allclose(found.posterior.variance, np.diag(v), rtol=1e-7)
            assert_allclose(found.posterior.log_det, np.linalg.slogdet(v)[1], rtol=1e-7)
            assert_allclose([found.kl, found.energy], [kl, kl + expected], rtol=1e-7)


def test_nothing_and_everything_adapts():
    """A prior that is sure leaves the weights at m0, one that knows nothing at the centre."""
    for precision, want in ((1e12, M0), (1e-12, CENTRE)):
        prior = niw.Diagonal(jnp.full(3, jnp.log(precision)))
        assert_allclose(_exact(A).combine(M0, prior).posterior.mean, want, atol=1e-9)
    flat = Quadratic(jnp.asarray(CENTRE), ZERO, ZERO, jnp.zeros(3), jnp.zeros(3))
    prior = niw.Diagonal(jnp.log(jnp.array([1.0, 4.0, 9.0])))
    found = flat.combine(jnp.asarray(M0), prior)
    assert_allclose(found.posterior.mean, M0)
    assert_allclose(found.posterior.variance, [1, 1 / 4, 1 / 9])
    assert_allclose(found.kl, 0, atol=1e-12)


def _task(likelihood, outputs, y, key=0, scale=1.0):
    net = eqx.nn.MLP(2, outputs, 4, 1, activation=jnp.tanh, key=jr.key(key))
    meta = niw.NIWMeta(net, likelihood, precision=2.0, likelihood_scale=scale)
    x = jr.normal(jr.key(1), (len(y), 2))
    mask = jnp.arange(len(y)) < len(y) - 1
    return TaskLoss(meta, x, jnp.asarray(y), mask)


def test_rows_are_the_curvature_of_a_linear_head_and_the_gradient_of_any():
    y, scale = np.array([0, 1, 2, 2, 1, 0]), 0.25
    cases = [
        (niw.Gaussian(0.3), 2, np.random.default_rng(0).normal(size=(6, 2))),
        (niw.Categorical(3), 3, y),
        (niw.Prototypes(3), 3, y),
    ]
    for likelihood, outputs, data in cases:
        loss = _task(likelihood, outputs, data, scale=scale)
        weights = loss.meta.population.mean[0]
        counted = likelihood.counted(loss.y, loss.mask)
        inner = lambda s: (
            -scale * jnp.sum(jnp.where(counted, likelihood.log_prob(s, loss.y), 0))
        )

        @jax.jit
        def found(w):
            jacobian, hessian = jax.jacobian(loss.scores)(w), jax.hessian(inner)(loss.scores(w))
            return *loss.rows(w), jax.grad(loss)(w), loss.jacobian(w), jacobian, hessian

        rows, residual, gradient, own, jacobian, hessian = map(np.asarray, found(weights))
        assert_allclose(rows.T @ residual, gradient, atol=1e-10)
        assert_allclose(own, jacobian, atol=1e-12)
        # In the scores the loss is convex, and rows are the root of its Hessian there.
        want = np.einsum("psi,psqt,qtj->ij", jacobian, hessian, jacobian)
        assert_allclose(rows.T @ rows, want, atol=1e-10)


def test_structures_are_parts_of_one_matrix():
    loss = _task(niw.Gaussian(0.3), 1, np.random.default_rng(0).normal(size=6))
    meta, m0 = loss.meta, loss.meta.population.mean[0]
    prior = jax.tree.map(lambda a: a[0], meta.population.covariance)

    @jax.jit
    def fits(m0, prior):
        local = lambda s, n: niw.GGNLaplace(steps=n, structure=s)
        names = (("full", 3), ("diagonal", 3), ("last_layer", 3), ("kronecker", 3))
        names = (*names, ("diagonal", 0), ("full", 0))
        return [local(*name).fit(loss, m0, prior, key=jr.key(0)) for name in names]

    whole, diagonal, last, kronecker, early, start = fits(m0, prior)
    ggn = np.asarray(whole.rows.T @ whole.rows)
    assert_allclose(early.slope, start.rows.T @ start.residual)
    # What a search finds counts as the maximum of the posterior unless the matrix is whole.
    gradient = -np.exp(np.asarray(prior.log_precision)) * (whole.centre - m0)
    assert_allclose(diagonal.diagonal, np.diag(ggn))
    assert_allclose(diagonal.slope, gradient)
    for found in (diagonal, kronecker):
        assert_allclose(found.combine(m0, prior).posterior.mean, whole.centre, atol=1e-9)
    begin = meta.layout.last
    assert begin == 12  # of 17, of which the last layer has 5
    matrix = np.diag(last.diagonal) + np.asarray(last.rows.T @ last.rows)
    want = np.diag(np.diag(ggn))
    want[begin:, begin:] = ggn[begin:, begin:]
    assert_allclose(matrix, want, atol=1e-9)
    own = np.where(np.arange(17) < begin, gradient, whole.rows.T @ whole.residual)
    assert_allclose(last.slope + last.rows.T @ last.residual, own, atol=1e-9)
    derivatives = jax.jit(lambda k: (jax.grad(k.at)(k.centre), jax.hessian(k.at)(m0)))
    slope, curvature = map(np.asarray, derivatives(kronecker))
    assert_allclose(kronecker.at(kronecker.centre), kronecker.value)
    assert_allclose(slope, gradient, atol=1e-9)
    at = np.cumsum([0, *meta.layout.sizes])
    for i, j in zip(at, at[1:]):
        # Blocks of vectors are whole; those of matrices have the right trace and are PSD.
        block, exact = curvature[i:j, i:j], ggn[i:j, i:j]
        assert_allclose(np.trace(block), np.trace(exact))
        assert np.linalg.eigvalsh(block).min() > -1e-9
        assert_allclose(curvature[i:j, :i], 0, atol=1e-12)
    assert_allclose(curvature[8:12, 8:12], ggn[8:12, 8:12], atol=1e-9)
    # The bound holds for its Gaussian, whatever the approximation: dense algebra agrees.
    found = kronecker.combine(m0, prior)
    v, precision = _matrix(found.posterior), np.exp(np.asarray(prior.log_precision))
    gap, e = found.posterior.mean - m0, found.posterior.mean - kronecker.centre
    logs = -np.log(precision).sum() - np.linalg.slogdet(v)[1]
    kl = (logs - 17 + precision @ np.diag(v) + precision @ gap**2) / 2
    fitted = kronecker.value + gradient @ e + e @ curvature @ e / 2
    assert_allclose(found.kl, kl)
    assert_allclose(found.energy, kl + fitted + np.trace(curvature @ v) / 2)
    # All weights have one precision here: the Gaussian is the best one.
    assert_allclose(v, np.linalg.inv(curvature + np.diag(precision)), atol=1e-9)


def test_search_finds_the_maximum_of_the_posterior():
    loss = _task(niw.Gaussian(0.3), 1, np.random.default_rng(0).normal(size=6))
    m0 = loss.meta.population.mean[0]
    prior = jax.tree.map(lambda a: a[0], loss.meta.population.covariance)
    local = niw.GGNLaplace(steps=400)
    surrogate = jax.jit(lambda m: local.fit(loss, m, prior, key=jr.key(0)))(m0)
    slope = jax.jit(jax.grad(lambda w: loss(w) + prior.quadratic(w - m0) / 2))
    at_start, at_end = map(np.linalg.norm, (slope(m0), slope(surrogate.centre)))
    assert at_end < 1e-3 * at_start
    # There the surrogate's best mean is the centre itself.
    found = surrogate.combine(m0, prior)
    assert_allclose(found.posterior.mean, surrogate.centre, atol=1e-3)


def test_moments_of_langevin_dynamics():
    """A long chain on a quadratic loss: its mean and variances; a short one is clipped."""
    net = eqx.nn.Linear(2, 1, use_bias=False, key=jr.key(0))
    meta = niw.NIWMeta(net, niw.Gaussian(0.5))
    x = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    loss = TaskLoss(meta, x, jnp.array([0.3, 1.0, 0.5]), jnp.ones(3, bool))
    m0, prior = meta.population.mean[0], niw.Diagonal(jnp.zeros(2))
    long = niw.SGLDMoments(steps=40_000, warmup=500, step_size=0.01)
    found = long.fit(loss, m0, prior, key=jr.key(2))
    precision = np.array([8.0, 16.0])  # X'X / scale^2
    step = 1 - 0.01 * precision / 2  # of an Euler scheme: variance over that of the target
    rho = 1 - 0.01 * precision
    # Effective draws of an autoregression, for the mean and for the variance.
    effective = 39_500 * (1 - rho) / (1 + rho), 39_500 * (1 - rho**2) / (1 + rho**2)
    error = np.sqrt(1 / (precision * step) / effective[0])
    assert np.all(np.abs(found.centre - np.array([0.4, 0.5])) < 4 * error)
    ratio = np.asarray(found.diagonal) / (precision * step)
    assert np.all(np.abs(ratio - 1) < 4 * np.sqrt(2 / effective[1]))
    assert found.clipped == 0
    short = niw.SGLDMoments(steps=5, warmup=0, step_size=1e-6, clip=(1e-4, 1e3))
    found = short.fit(loss, m0, prior, key=jr.key(2))
    assert found.clipped == 1
    assert_allclose(found.diagonal, 1e3)
    # The unbiased variance of a chain of pure noise, by NumPy.
    flat = TaskLoss(meta, x, jnp.zeros(3), jnp.zeros(3, bool))
    one = niw.SGLDMoments(steps=9, warmup=4, step_size=0.5, clip=(0.0, 1e9))
    found = one.fit(flat, m0, prior, key=jr.key(3))
    noise = np.stack([jr.normal(k, (2,)) for k in jr.split(jr.key(3), 9)])
    path = np.asarray(m0) + np.cumsum(noise, axis=0)
    assert_allclose(found.centre, path[4:].mean(0))
    assert_allclose(found.diagonal, 1 / path[4:].var(0, ddof=1))


def test_draws_have_the_law():
    surrogate = _exact(A)
    found = surrogate.combine(jnp.asarray(M0), niw.Diagonal(jnp.zeros(3))).posterior
    noise = jr.normal(jr.key(0), (20_000, found.noise_size))
    drawn = np.asarray(jax.vmap(found.move)(noise))
    white = drawn @ np.linalg.inv(np.linalg.cholesky(np.linalg.inv(A + np.eye(3)))).T
    assert stats.kstest((white**2).sum(1), stats.chi2(3).cdf).pvalue > 1e-5
    assert_allclose(jax.vmap(found.move)(-noise), -drawn)
