"""New tasks: exact posteriors where there are some, mixtures, tails, priors, predictions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from linear_tasks import NOISE, model, tasks
from numpy.testing import assert_allclose
from scipy import stats

from whence.models import niw
from whence.models.niw._covariance import full
from whence.models.niw._diagnose import _every, _judge, _surrogate_error
from whence.models.niw._prior import log_prior, prior_for

X, Y, _ = tasks(3, points=4, seed=5)
NEW = np.random.default_rng(1).normal(size=(6, 2))
M0, S = np.array([0.4, 0.2]), np.array([[0.5, 0.2], [0.2, 0.6]])


def _with(meta, means, matrices, log_weights=None):
    covariances = [full(jnp.asarray(m)) for m in matrices]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *covariances)
    log_weights = jnp.zeros(len(means)) if log_weights is None else jnp.asarray(log_weights)
    population = niw.Population(log_weights, jnp.asarray(means), stacked)
    return eqx.tree_at(lambda m: m.population, meta, population)


LINEAR = _with(model(), [M0], [S])


def _regression(x, y, mean=M0, matrix=S):
    precision = np.linalg.inv(matrix)
    v = np.linalg.inv(x.T @ x / NOISE**2 + precision)
    return v @ (x.T @ y / NOISE**2 + precision @ mean), v


def _covariance(task):
    law = jax.tree.map(lambda a: a[0], task.posterior)
    return law.times(jnp.eye(law.mean.shape[0]))


def test_linear_tasks_are_exact():
    mean, v = _regression(X[0], Y[0])
    task = niw.adapt(LINEAR, X[0], Y[0])
    assert_allclose(task.mean, mean, rtol=1e-7)
    assert_allclose(_covariance(task), v, rtol=1e-7)
    predicted = task.predict(NEW)
    variance = np.einsum("pi,ij,pj->p", NEW, v, NEW) + NOISE**2
    assert_allclose(predicted.mean[:, 0], NEW @ mean, rtol=1e-7)
    assert_allclose(predicted.variance[:, 0], variance, rtol=1e-7)
    law = stats.norm(NEW @ mean, np.sqrt(variance))
    y = NEW @ mean + 0.3
    assert_allclose(predicted.log_prob(y), law.logpdf(y), rtol=1e-7)
    assert_allclose(predicted.cdf(y)[:, 0], law.cdf(y), rtol=1e-7)
    covariance = X[0] @ S @ X[0].T + NOISE**2 * np.eye(4)
    evidence = stats.multivariate_normal(X[0] @ M0, covariance).logpdf(Y[0])
    assert_allclose(task.log_evidence, evidence, rtol=1e-7)
    # Draws through the network itself are of the same law.
    drawn = task.predict(NEW, draws=4_000, linearised=False, key=3)
    error = np.sqrt(variance - NOISE**2) / 4_000**0.5
    assert np.all(np.abs(drawn.mean[:, 0] - NEW @ mean) < 4.5 * error)
    assert_allclose(drawn.log_prob(y), law.logpdf(y), atol=0.1)


class Known(niw.AbstractLocal):
    """The quadratic of a linear task, made at its minimum; exact, or too large by a number."""

    off: float = 0.0

    def fit(self, loss, mean, covariance, *, key):
        rows, residual = loss.rows(mean)
        centre = jnp.linalg.solve(rows.T @ rows, rows.T @ (rows @ mean - residual))
        quarter, none = jnp.asarray(0.25), jnp.zeros(len(rows))
        value = loss(centre) + self.off
        return niw.Quadratic(centre, value, quarter, rows=rows, residual=none)


def test_what_was_learned_of_a_task_in_numbers():
    mean, v = _regression(X[0], Y[0])
    task = niw.adapt(LINEAR, X[0], Y[0], local=Known())
    assert_allclose(task.mean, mean, rtol=1e-7)
    gap, inverse = mean - M0, np.linalg.inv(S)
    logs = np.linalg.slogdet(S)[1] - np.linalg.slogdet(v)[1]
    assert_allclose(task.kl, (logs + np.trace(inverse @ v) + gap @ inverse @ gap - 2) / 2)
    ols = np.linalg.lstsq(X[0], Y[0])[0]
    assert_allclose(task.ratio, np.linalg.norm(gap) / np.linalg.norm(ols - M0))
    assert_allclose(task.clipped, 0.25)
    error = eqx.filter_jit(_surrogate_error)(task, Known(0.7), jr.key(0))
    assert_allclose(error, 0.7, rtol=1e-6)
    # Draws of a mixture are shared out by the weights, and come from the law of each part.
    certain = niw.Diagonal(jnp.full((2, 2), 200.0))
    parts = niw.WeightGaussian(jnp.array([[1.0, 2.0], [-3.0, 0.5]]), certain)
    where = lambda t: (t.posterior, t.log_weights)
    mixed = eqx.tree_at(where, task, (parts, jnp.log(jnp.array([0.3, 0.7]))))
    drawn = np.asarray(mixed.sample(10))
    assert_allclose(drawn, np.repeat(parts.mean, [3, 7], axis=0), atol=1e-9)
    assert_allclose(mixed.mean, [0.3 - 2.1, 0.6 + 0.35])


def test_variational_posterior_of_a_linear_task():
    mean, v = _regression(X[0], Y[0])
    task = niw.adapt(LINEAR, X[0], Y[0], method="vi", steps=1_500, pairs=8, key=1)
    assert_allclose(task.mean, mean, atol=0.01)
    assert_allclose(_covariance(task), v, rtol=0.08, atol=0.002)
    # Independent weights: of a Gaussian the best variances are one over its precision.
    diagonal = eqx.tree_at(
        lambda m: m.population.mean, model("diagonal", precision=2.0), jnp.asarray(M0)[None]
    )
    task = niw.adapt(diagonal, X[0], Y[0], method="vi", steps=1_500, pairs=8, key=1)
    precision = X[0].T @ X[0] / NOISE**2 + 2 * np.eye(2)
    assert_allclose(np.diag(_covariance(task)), 1 / np.diag(precision), rtol=0.08)
    assert_allclose(task.mean, _regression(X[0], Y[0], M0, np.eye(2) / 2)[0], atol=0.01)


def test_a_mixture_knows_which_kind_a_task_is_of():
    other = np.array([-1.0, 1.0])
    meta = _with(model(components=2), [M0, other], [S, 0.1 * S], np.log([0.7, 0.3]))
    for x, y in zip(X, Y):
        task = niw.adapt(meta, x, y)
        evidence = [
            stats.multivariate_normal(x @ m, x @ s @ x.T + NOISE**2 * np.eye(4)).logpdf(y)
            for m, s in ((M0, S), (other, 0.1 * S))
        ]
        joint = np.log([0.7, 0.3]) + evidence
        assert_allclose(task.log_evidence, np.logaddexp(*joint), rtol=1e-7)
        shares = np.exp(joint - np.logaddexp(*joint))
        assert_allclose(task.components, shares, rtol=1e-6, atol=1e-12)
        means = [_regression(x, y)[0], _regression(x, y, other, 0.1 * S)[0]]
        assert_allclose(task.mean, shares @ means, rtol=1e-6)
        v = [_regression(x, y)[1], _regression(x, y, other, 0.1 * S)[1]]
        variance = [np.einsum("pi,ij,pj->p", NEW, one, NEW) + NOISE**2 for one in v]
        laws = [stats.norm(NEW @ m, np.sqrt(s)) for m, s in zip(means, variance)]
        predicted, at = task.predict(NEW), NEW @ M0
        density = sum(p * law.pdf(at) for p, law in zip(shares, laws))
        assert_allclose(predicted.log_prob(at), np.log(density), rtol=1e-6)
        below = sum(p * law.cdf(at) for p, law in zip(shares, laws))
        assert_allclose(predicted.cdf(at)[:, 0], below, atol=1e-7)
        centre = shares @ [law.mean() for law in laws]
        second = shares @ [law.var() + law.mean() ** 2 for law in laws]
        assert_allclose(predicted.variance[:, 0], second - centre**2, rtol=1e-6)


def test_tails_say_how_unusual_a_task_is():
    meta = _with(model(tails=4.0), [M0], [S])
    law = stats.invgamma(2.0, scale=2.0)
    v = np.geomspace(1e-3, 1e5, 20_000)
    for factor in (1.0, 8.0):
        y = X[0] @ (M0 + factor * np.array([1.0, -1.0]))
        density = np.array(
            [
                stats.multivariate_normal(
                    X[0] @ M0, s * X[0] @ S @ X[0].T + 0.09 * np.eye(4)
                ).pdf(y)
                for s in v[::20]
            ]
        )
        grid = v[::20]
        weights = law.pdf(grid) * density * grid
        want = (weights * grid).sum() / weights.sum()
        task = niw.adapt(meta, X[0], y)
        assert_allclose(task.scale, want, rtol=0.02)
        evidence = np.log(np.trapezoid(law.pdf(grid) * density, grid))
        assert_allclose(task.log_evidence, evidence, atol=0.02)
    assert want > 5  # the far task
    assert niw.adapt(LINEAR, X[0], Y[0]).scale == 1


def test_priors():
    df, strength = 8.0, 5.0
    meta = _with(model(df=df, strength=strength), [M0], [S])
    law = niw.NIW(M0, strength, df * S, df)
    mode = prior_for(meta, "mode")[0].covariance.lower[0]
    tril = niw.Full(mode).tril
    assert_allclose(tril @ tril.T, law.mode)
    # Student's t: the posterior mean by weights on draws of the prior.
    t = niw.adapt(meta, X[0][:2], Y[0][:2], prior="predictive_t")
    theta = np.asarray(law.predictive.sample(jr.key(0), (400_000,)))
    log = stats.norm(theta @ X[0][:2].T, NOISE).logpdf(Y[0][:2]).sum(1)
    weights = np.exp(log - log.max())
    assert_allclose(t.mean, weights @ theta / weights.sum(), atol=0.02)
    assert_allclose(t.log_evidence, np.log(weights.mean()) + log.max(), atol=0.03)
    # Of the product each weight has its own: at df = 1 the mode is a quarter.
    product = model("diagonal", mean=M0, precision=2.0, df=1.0)
    mode = niw.adapt(product, X[0], Y[0], prior="mode")
    assert_allclose(mode.mean, _regression(X[0], Y[0], M0, np.eye(2) / 8)[0])
    heavy = niw.adapt(product, X[0], Y[0], prior="predictive_t")
    # Its normal stand-in is at rest: E w = (df + 1) / (df + moment / S), S = 2 * 0.5.
    mean, v = np.asarray(heavy.mean), np.asarray(_covariance(heavy))
    w = 2 / (1 + (np.diag(v) + (mean - M0) ** 2) / 1.0)
    again, _ = _regression(X[0], Y[0], M0, np.diag(1 / w))
    assert_allclose(mean, again, atol=1e-5)
    prior = prior_for(product, "predictive_t")
    at = np.array([[0.1, -2.0], [3.0, 0.4]])
    found = [log_prior(jnp.asarray(w), *prior) for w in at]
    assert_allclose(np.diff(found), np.diff(stats.t(1.0, M0).logpdf(at).sum(1)))
    close = niw.adapt(product, X[0], Y[0], prior="predictive_t", method="vi", steps=800)
    assert_allclose(close.mean, mean, atol=0.05)


def _classes(number, shots, seed=0):
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(number, 3, 2))
    y = np.tile(np.repeat(np.arange(3), shots), (number, 1))
    x = centres[np.arange(number)[:, None], y] + rng.normal(size=(number, 3 * shots, 2))
    return x, y


def test_heads_of_labels():
    x, y = _classes(1, 4)
    linear = niw.NIWMeta(
        eqx.nn.Linear(2, 3, key=jr.key(0)), niw.Categorical(3), covariance="full", precision=1.0
    )
    newton = niw.GGNLaplace(steps=0, newton=30)
    task = niw.adapt(linear, x[0], y[0], local=newton)
    predicted = task.predict(x[0], draws=200)
    assert_allclose(predicted.mean.sum(1), 1)
    # The maximum and curvature of a logistic regression, by Newton's method.
    design = np.concatenate([x[0], np.ones((12, 1))], 1)
    m0 = linear.population.mean[0]
    order = np.array([0, 1, 6, 2, 3, 7, 4, 5, 8])  # weights by class, then biases
    start = np.asarray(m0)[order]
    theta = start.copy()
    for _ in range(50):
        p = np.asarray(jax.nn.softmax(design @ theta.reshape(3, 3).T))
        gradient = ((p - np.eye(3)[y[0]]).T @ design).ravel() + theta - start
        inner = np.einsum("pc,cd->pcd", p, np.eye(3)) - np.einsum("pc,pd->pcd", p, p)
        hessian = np.einsum("pcd,pi,pj->cidj", inner, design, design).reshape(9, 9) + np.eye(9)
        theta = theta - np.linalg.solve(hessian, gradient)
    assert_allclose(np.asarray(task.mean)[order], theta, atol=1e-6)
    covariance = np.asarray(_covariance(task))[np.ix_(order, order)]
    assert_allclose(covariance, np.linalg.inv(hessian), atol=1e-6)
    by_adam = niw.adapt(linear, x[0], y[0], local=niw.GGNLaplace(steps=300))
    assert_allclose(by_adam.mean, task.mean, atol=0.01)
    # From afar a whole step overshoots: the halved ones still arrive.
    far = eqx.tree_at(lambda m: m.population.mean, linear, 30 * linear.population.mean)
    found = niw.adapt(far, x[0], y[0], local=newton)
    objective = lambda w: found.loss(w) + jnp.sum((w - far.population.mean[0]) ** 2) / 2
    assert_allclose(jax.jit(jax.grad(objective))(found.mean), np.zeros(9), atol=1e-5)


def test_prototypes():
    x, y = _classes(1, 3)
    net = eqx.nn.Linear(2, 2, key=jr.key(0))
    meta = niw.NIWMeta(net, niw.Prototypes(3), precision=1.0)
    weights = meta.population.mean[0]
    z = np.asarray(meta.outputs(weights, jnp.asarray(x[0])))
    scores = meta.likelihood.scores(jnp.asarray(z), jnp.asarray(y[0]), jnp.ones(9, bool))
    means = np.stack([np.delete(z, 0, 0)[np.delete(y[0], 0) == c].mean(0) for c in range(3)])
    assert_allclose(scores[0], -((z[0] - means) ** 2).sum(1))
    # With one point of each class the support says nothing of the weights.
    task = niw.adapt(meta, x[0][::3], y[0][::3])
    assert_allclose(task.mean, weights)
    assert_allclose(task.kl, 0, atol=1e-9)
    certain = eqx.tree_at(
        lambda m: m.population.covariance.log_precision, meta, jnp.full((1, 6), 40.0)
    )
    predicted = niw.adapt(certain, x[0][::3], y[0][::3]).predict(x[0], draws=1)
    distances = ((z[:, None] - z[::3][None]) ** 2).sum(-1)
    assert_allclose(predicted.mean, jax.nn.softmax(-distances), atol=1e-6)
    assert_allclose(
        predicted.log_prob(y[0]), np.log(predicted.mean[np.arange(9), y[0]]), atol=1e-6
    )


def test_diagnose():
    x, y, _ = tasks(30, points=12, seed=2)
    from linear_tasks import MU, SIGMA

    right = _with(model(tails=4.0), [MU], [SIGMA])
    report = niw.diagnose(right, niw.Tasks(x, y), shots=(2, 8))
    assert report.ok, str(report)
    assert report.numbers["nll_8"] < report.numbers["nll_2"]
    assert report.numbers["surrogate_8"] < 1e-6
    assert abs(report.numbers["coverage90_8"] - 0.9) < 0.1
    # Of 30 tasks with 4 points left: squares of the noise and 1 / 4 of it more, log densities
    # with the variance of half a chi-squared number.
    assert_allclose(report.numbers["mse_8"], 1.25 * NOISE**2, rtol=5 * np.sqrt(2 / 120))
    assert_allclose(report.numbers["nll_error_8"], np.sqrt(0.5 / 4 / 30), rtol=0.5)
    wrong = eqx.tree_at(lambda m: m.likelihood, right, niw.Gaussian(0.02))
    report = niw.diagnose(wrong, niw.Tasks(x, y), shots=(8,))
    assert not report.ok
    assert "calibration" in report
    every = _every(right, niw.Tasks(x, y), jnp.asarray(8), niw.GGNLaplace(), jr.key(0))
    seen = jax.tree.map(np.asarray, every) | {"clipped": np.linspace(0.2, 1.0, 30)}
    found = {finding.code: finding for finding in _judge(right, niw.Tasks(x, y), 8, seen)[0]}
    assert found["clipped"].severity == "warning"
    assert_allclose(found["clipped"].value, 0.6)
    y[3] = x[3] @ np.array([40.0, 40.0])
    report = niw.diagnose(right, niw.Tasks(x, y), shots=(4,))
    assert report["unusual"].where[0] == "task 3"
    x, y = _classes(10, 4)
    labels = niw.NIWMeta(eqx.nn.Linear(2, 3, key=jr.key(0)), niw.Categorical(3), precision=0.1)
    report = niw.diagnose(labels, niw.Tasks(x, y), shots=(2,))
    assert report.numbers["accuracy_2"] > 0.5
    with pytest.raises(ValueError, match="`shots` must leave a point to predict in every task"):
        niw.diagnose(labels, niw.Tasks(x, y), shots=(4,))
