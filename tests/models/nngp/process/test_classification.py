"""Sparse classification: golden values, the exact process, quadrature, bad input."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.special import logsumexp

import whence as wh
from whence.models import nngp
from whence.models.nngp.process._inducing import factor, project
from whence.models.nngp.process._softmax import expected_logsumexp, log_expected_softmax
from whence.testing import check_model

NET = nngp.Serial(
    nngp.Dense(2.0, 0.1), nngp.Erf(), nngp.Dense(2.0, 0.1), nngp.Erf(), nngp.Dense()
)
Z = np.array([[1.0, 0.0], [0.5, -1.0], [-2.0, 0.3]])
NEW = np.array([[0.2, 0.7]])
ZERO = jnp.zeros(())
MU, S, A, B, PRIOR_A, PRIOR_B = [0.1, -0.2, 0.3], [0.2, 0.3, 0.4], 3.0, 2.0, 2.0, 1.5


def expected_by_nodes(function, loc, deviation):
    """Three classes, 40 nodes along each axis."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    grid = np.stack(np.meshgrid(nodes, nodes, nodes), -1).reshape(-1, 3)
    mass = np.prod(np.stack(np.meshgrid(weights, weights, weights), -1).reshape(-1, 3), -1)
    return mass @ function(loc + deviation * grid)


@pytest.mark.parametrize(
    ("deviation", "tolerance"), [(0.0, 5e-4), (0.3, 5e-4), (1.0, 5e-4), (3.0, 2e-3)]
)
def test_line_integral_is_that_over_all_classes(deviation, tolerance):
    locs = np.array([[0.0, 0.0, 0.0], [2.0, -1.0, 0.5], [-30.0, 1.0, 2.0], [0.1, -7.0, 6.0]])
    s = jnp.full(4, deviation)
    lse = expected_logsumexp(jnp.asarray(locs), s)
    log_probs = log_expected_softmax(jnp.asarray(locs), s)

    def softmax(f):
        return np.exp(f - logsumexp(f, axis=-1, keepdims=True))

    for loc, value, probs in zip(locs, lse, np.exp(log_probs)):
        exact = expected_by_nodes(lambda f: logsumexp(f, axis=-1), loc, deviation)
        assert_allclose(value, exact, atol=tolerance)
        exact = expected_by_nodes(softmax, loc, deviation)
        assert_allclose(probs, exact, atol=tolerance)


@pytest.mark.slow
def test_line_integral_with_many_classes(key):
    """Ten classes against draws, and its gradient against finite differences."""
    loc = 3 * jr.normal(key, (1, 10))
    for s, floor in ((0.7, 5e-4), (2.0, 1e-3), (5.0, 1e-2)):
        deviation = jnp.full(1, s)
        values = jax.nn.logsumexp(loc + s * jr.normal(key, (100_000, 10)), axis=-1)
        error = values.std() / 100_000**0.5
        lse = expected_logsumexp(loc, deviation)[0]
        assert_allclose(lse, values.mean(), atol=4.5 * error + floor)
        # The gradient is the probability of each class.
        slope = jax.grad(lambda m, d=deviation: expected_logsumexp(m, d)[0])(loc)
        assert_allclose(slope, np.exp(log_expected_softmax(loc, deviation)), atol=floor)
    up, down = (expected_logsumexp(loc, jnp.full(1, 2.0 + h))[0] for h in (1e-5, -1e-5))
    slope = jax.grad(lambda d: expected_logsumexp(loc, d)[0])(jnp.full(1, 2.0))
    assert_allclose(slope[0], (up - down) / 2e-5, atol=2e-3)


@pytest.mark.slow
def test_far_apart_and_many_rows():
    loc = jnp.concatenate([jnp.array([[900.0, 0.0]]), jnp.zeros((299, 2))])
    labels = nngp.SoftmaxLabels(loc, jnp.zeros(300))
    assert_allclose(labels.log_prob(jnp.ones(300, int))[:2], [-900, -np.log(2)], atol=5e-4)
    assert labels.log_probs[0, 1] < -700
    gradient = jax.grad(
        lambda m: nngp.SoftmaxLabels(m, jnp.ones(300)).log_prob(jnp.ones(300, int)).sum()
    )(loc)
    assert np.isfinite(gradient).all()


def golden_parameters(family):
    unit = np.sqrt(B / A)
    tril = np.asarray(factor(NET, Z, ZERO))
    # mu and S of the values themselves, in whitened coordinates.
    spread = np.linalg.cholesky(np.linalg.solve(tril, np.linalg.solve(tril, np.diag(S)).T))
    scale = np.diag(spread)
    base = {
        "loc": jnp.asarray(np.linalg.solve(tril, MU) / unit),
        "log_scale": jnp.log(jnp.asarray(scale)),
        "lower": jnp.tril(jnp.asarray(spread / scale[:, None]), -1),
    }
    params = {"location": jnp.log(unit**2), "log_shape": jnp.log(A), "base": base}
    return jax.tree.map(jnp.asarray, params)


def test_golden_divergence_and_marginal(key):
    """KL(q || p) and q(f*), q as in the spec of the values, here in whitened coordinates."""
    family = wh.ScaleMixtureFamily("v", wh.FullRank()).bind((("v", 1), ("white", 3)))
    params = golden_parameters(family)
    # KL in closed form: minus the entropy, minus the mean log prior under q.
    found = family.describe(params)
    a, b = found["a"], found["b"]
    mean, spread = found["loc"], found["scale_tril"]
    log_v = np.log(b) - jax.scipy.special.digamma(a)
    prior = PRIOR_A * np.log(PRIOR_B) - jax.scipy.special.gammaln(PRIOR_A)
    prior += -PRIOR_A * log_v - PRIOR_B * a / b  # of log v
    square = a / b * mean @ mean + (spread**2).sum()  # of u / sqrt(v), whitened
    prior += -0.5 * square - 1.5 * np.log(2 * np.pi)
    assert_allclose(-family.entropy(params) - prior, 0.9022396571, atol=1e-9)
    # Draws of the family through the model: t, of the same law for every draw of v.
    model = nngp.Classification(NET, nngp.InverseGamma(2.0, 1.5), Z, 2, jitter=0.0)
    seen = model.project(NEW)
    loc = seen.read.T @ mean
    variance = seen.residual + ((seen.read.T @ spread) ** 2).sum()
    assert_allclose(loc, 0.3481429633, atol=1e-9)
    assert_allclose(np.sqrt(b / a * variance), 0.5998485594, atol=1e-9)
    noise = family.noise(jnp.zeros(4), 4_000, key=key)
    draws = jax.jit(jax.vmap(lambda n: family.transform(params, n)))(noise)

    def marginal(draw):
        white = jnp.stack([draw[1:], draw[1:]])
        labels: Any = _at(model, jnp.exp(draw[0]), white).likelihood(NEW)
        return labels.loc[0, 0], labels.deviation[0]

    mean, deviation = jax.jit(jax.vmap(marginal))(draws)
    f = np.asarray(mean + deviation * jr.normal(key, (4_000,)))
    t = stats.t(6, 0.3481429633, 0.5998485594)
    assert stats.kstest(f, t.cdf).pvalue > 1e-4
    # And not what independent scales per class would give: |f| and v go together.
    v = np.exp(draws[:, 0])
    assert stats.spearmanr(np.abs(f - 0.3481429633), v).statistic > 0.2


def _at(model, v, white):
    return wh.condition(model, np.arange(3) % 2, Z).constrain({"v": jnp.log(v), "white": white})


class Regression(wh.Model):
    """The same latents and projection, with a Gaussian likelihood in closed form."""

    network: nngp.Serial
    inducing: jax.Array
    noise: float = 0.05
    v: jax.Array = wh.latent(dist.InverseGamma(2.0, 1.5))
    white: jax.Array = wh.latent(dist.Normal(0.0, 1.0), shape=lambda m: (len(m.inducing),))

    def log_likelihood(self, y, x):
        seen = project(self.network, self.inducing, x, ZERO)
        root = jnp.sqrt(self.v)
        mean = root * (seen.read.T @ self.white)
        # The mean over f given the inducing values, of log N(y; f, v noise).
        left = seen.residual / (2 * self.noise)
        return dist.Normal(mean, root * self.noise**0.5).log_prob(y) - left


def fit_regression(inducing, x, y, key):
    family = wh.ScaleMixtureFamily("v", wh.FullRank())
    target = wh.condition(Regression(NET, jnp.asarray(inducing)), y, x)
    engine = wh.BBVI(family=family, steps=4_000, draws=1_000, samples=5)
    found = wh.infer(target, engine, key=key).record
    return vars(found) | found.parameters


@pytest.mark.slow
def test_optimum_is_the_exact_posterior_of_a_regression(key):
    """All data as inducing inputs: q is the posterior, and the bound the evidence."""
    key_x, key_y = jr.split(key)
    x = jr.normal(key_x, (8, 2))
    y = np.asarray(jnp.sin(2 * x[:, 0]) + 0.3 * jr.normal(key_y, (8,)))
    found = fit_regression(x, x, y, key)
    exact = nngp.ScaleMixture(NET, nngp.InverseGamma(2.0, 1.5), 0.05).condition(x, y)
    covariance = np.asarray(NET.nngp(x))
    noisy = covariance + 0.05 * np.eye(8)
    assert_allclose(found["a"], 2 + 8 / 2, rtol=2e-3)
    assert_allclose(found["b"], 1.5 + exact.quadratic / 2, rtol=2e-3)
    tril = np.linalg.cholesky(covariance)
    mu = tril @ found["loc"]
    assert_allclose(mu, covariance @ np.linalg.solve(noisy, y), atol=2e-3)
    spread = tril @ found["scale_tril"]
    posterior = covariance - covariance @ np.linalg.solve(noisy, covariance)
    assert_allclose(spread @ spread.T, posterior, atol=2e-3)
    assert_allclose(found["elbo_final"], exact.log_evidence, atol=1e-3)
    assert found["elbo_final_error"] < 1e-3
    # With fewer inducing inputs it is a bound, of Titsias' form for this process.
    few = fit_regression(x[:4], x, y, key)
    seen = project(NET, x[:4], x, ZERO)
    low_rank = np.asarray(seen.read.T @ seen.read) + 0.05 * np.eye(8)
    q = y @ np.linalg.solve(low_rank, y)
    law = nngp.InverseGamma(2.0, 1.5)
    bound = law.log_integral(8, jnp.asarray(q)) - 4 * np.log(2 * np.pi)
    bound -= np.linalg.slogdet(low_rank)[1] / 2 + seen.residual.sum() / 0.1
    assert bound < exact.log_evidence - 0.5
    assert_allclose(few["elbo_final"], bound, atol=2e-3)


@pytest.mark.slow
def test_tiny_problems_by_quadrature(key):
    """One and two rows: the posterior mean of v and the evidence, by nodes."""
    law = nngp.InverseGamma(3.0, 2.0)
    v = np.exp(np.linspace(-4, 6, 120))
    prior = stats.invgamma.pdf(v, 3, scale=2) * v  # of log v, on an even grid
    prior = prior / prior.sum()
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    weights = weights / weights.sum()
    grids = np.meshgrid(*[nodes] * 4, indexing="ij")
    white = np.stack(grids, -1).reshape(-1, 2, 2)
    mass = np.prod(np.stack(np.meshgrid(*[weights] * 4, indexing="ij"), -1), -1).ravel()
    x, y = Z[:2], np.array([0, 1])
    tril = np.linalg.cholesky(np.asarray(NET.nngp(x)))
    f = np.sqrt(v)[:, None, None, None] * (white @ tril.T)
    chosen = np.take_along_axis(f, np.broadcast_to(y, f.shape[:2] + (1, 2)), 2)[:, :, 0]
    likelihood = np.exp((chosen - logsumexp(f, axis=2)).sum(-1)) @ mass
    model = nngp.Classification(NET, law, x, 2, jitter=0.0)
    target = wh.condition(model, y, x)
    posterior = wh.infer(target, wh.TemperedSMC(particles=8_192), key=key)
    evidence = np.asarray(posterior.log_evidence)
    assert_allclose(evidence, np.log(likelihood @ prior), atol=0.03)
    weights = _weights(posterior)
    # Of log v: its posterior has a standard deviation of about 0.6.
    log_v = np.log(v) @ (likelihood * prior) / (likelihood @ prior)
    assert_allclose(weights @ np.log(posterior["v"][0]), log_v, atol=0.05)


def two_classes(key, rows=40):
    """Points in a plane, labelled by a wave with some labels at random."""
    key_x, key_y = jr.split(key)
    x = np.asarray(jr.normal(key_x, (rows, 2)))
    sure = jax.nn.sigmoid(4 * (jnp.sin(2 * x[:, 0]) - x[:, 1]))
    return x, np.asarray(jr.bernoulli(key_y, sure)).astype(int)


@pytest.mark.slow
def test_engines_agree(key):
    """All rows as inducing inputs: two samplers, and the bound, on the process itself."""
    x, y = two_classes(key)
    new = np.asarray(jr.normal(jr.fold_in(key, 1), (20, 2)))
    model = nngp.Classification(NET, nngp.InverseGamma(2.0, 2.0), x, 2, jitter=1e-8)
    target = wh.condition(model, y, x)
    nuts = wh.infer(target, wh.NUTS(chains=2, warmup=300, draws=500), key=key)
    smc = wh.infer(target, wh.TemperedSMC(particles=512), key=key)
    family = wh.ScaleMixtureFamily("v", wh.Blocks(2, wh.FullRank()))
    bbvi = wh.infer(target, wh.BBVI(family=family, steps=3_000, draws=1_000), key=key)
    probs = [np.exp(nngp.class_log_probs(p, new, key=key)[:, 1]) for p in (nuts, smc, bbvi)]
    assert np.ptp(probs[0]) > 0.3
    assert_allclose(probs[1], probs[0], atol=0.05)
    assert_allclose(probs[2], probs[0], atol=0.06)
    log_v = np.log(nuts["v"])
    assert_allclose(_weights(smc) @ np.log(smc["v"][0]), log_v.mean(), atol=0.2)
    gap = np.asarray(smc.log_evidence) - bbvi.sample.record.elbo_final
    assert -0.2 < gap < 3
    # Labels drawn, and probabilities with f integrated out, are of one law.
    labels = nuts.predict(new, key=key)
    assert_allclose(labels.mean((0, 1)), probs[0], atol=0.05)
    integrated = nuts.map(_Probs(new)).mean((0, 1))[:, 1]
    assert_allclose(integrated, probs[0], atol=0.02)


def _weights(posterior):
    if posterior.log_weights is None:
        return np.full(posterior.num_draws, 1 / posterior.num_draws)
    return np.exp(posterior.log_weights[0])


class _Probs(eqx.Module):
    x: np.ndarray

    def __call__(self, draw):
        return draw.likelihood(self.x).probs


@pytest.mark.slow
def test_conformance(key):
    x = np.concatenate([Z, Z + 0.4, -Z])
    y = np.arange(9) % 3
    check_model(
        nngp.Classification(NET, nngp.InverseGamma(2.0, 1.5), Z, 3), y, x, key=key, points=1
    )


@pytest.mark.slow
def test_unknown_parameters_and_inducing_inputs(key):
    net = nngp.Serial(nngp.Dense(dist.LogNormal(0.0, 1.0)), nngp.ReLU(), nngp.Dense())
    law = nngp.InverseGamma(2.0, dist.LogNormal(0.0, 1.0))
    model = nngp.Classification(net, law, Z, 2, train_inducing=True)
    x, y = np.concatenate([Z, -Z]), np.array([0, 1, 0, 1, 0, 1])
    target = wh.condition(model, y, x)
    names = [site.name for site in target.sites]
    assert names == [
        "network.layers.0.weight_variance",
        "scale.scale",
        "inducing",
        "v",
        "white",
    ]
    assert_array_equal(target.init(key=key)["inducing"], Z)
    gradient = jax.grad(target.log_density)(target.init(key=key))
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradient.values())
    family = wh.Factors(
        {"inducing": wh.Point(), "network.*": wh.Point(), "scale.*": wh.Point()},
        rest=wh.ScaleMixtureFamily("v", wh.Blocks(2, wh.FullRank())),
    )
    engine = wh.BBVI(family=family, steps=20, draws=50, batch_size=3)
    posterior = wh.infer(target, engine, key=key)
    assert posterior["inducing"].std(axis=1).max() < 1e-12
    assert np.abs(posterior["inducing"][0, 0] - Z).max() > 0.05


def test_known_scale_has_no_latent():
    model = nngp.Classification(NET, nngp.PointMass(2.0), Z, 2)
    target = wh.condition(model, np.array([0, 1, 1]), Z)
    assert [site.name for site in target.sites] == ["white"]
    assert model.v == 2


@pytest.mark.parametrize("law", [nngp.BurrXII(2.0, 1.0), dist.LogNormal(0.0, 1.0)])
def test_other_laws(law, key):
    target = wh.condition(nngp.Classification(NET, law, Z, 2), np.array([0, 1, 1]), Z)
    position = {"v": jnp.asarray(0.3), "white": jnp.zeros((2, 3))}
    v = np.exp(0.3)
    burr: Any = stats.burr12(2, 1)
    own = burr.logpdf(v) if isinstance(law, nngp.BurrXII) else law.log_prob(v)
    expected = own + 0.3 + 6 * stats.norm.logpdf(0)
    assert_allclose(target.log_prior(position), expected, rtol=1e-8)


def test_stratified_rows(key):
    labels = np.repeat([0, 1, 2], [50, 30, 2])
    rows = nngp.stratified_rows(labels, 12, key=key)
    assert_array_equal(np.bincount(labels[rows]), [5, 5, 2])
    assert len(set(rows.tolist())) == 12
    assert_array_equal(nngp.stratified_rows(labels, 82, key=key), np.arange(82))
    other = nngp.stratified_rows(labels, 12, key=jr.fold_in(key, 1))
    assert rows.tolist() != other.tolist()
    for size in (0, 83):
        with pytest.raises(ValueError, match="`size` must be"):
            nngp.stratified_rows(labels, size, key=key)


LAW = nngp.InverseGamma(2.0, 1.5)


@pytest.mark.parametrize(
    ("y", "x", "message"),
    [
        (np.array([0, 1, 3, 1]), np.ones((4, 2)), "classes from 0 to 2; got 3 at index 2"),
        (np.array([0, -1, 1, 1]), np.ones((4, 2)), "got -1 at index 1"),
        (np.array([0.0, 0.5, 1.0, 1.0]), np.ones((4, 2)), "must be integers"),
        (np.array([0, 1, 1, 2]), np.ones((4, 3)), r"shape of the inducing inputs, \(2,\)"),
        (np.array([0, 1]), np.ones((2, 2)), "at most as many inputs as there are rows, 2"),
        (np.array([[0, 1]] * 4), np.ones((4, 2)), "one label per row"),
    ],
)
def test_bad_data(y, x, message):
    with pytest.raises(ValueError, match=message):
        wh.condition(nngp.Classification(NET, LAW, Z, 3), y, x)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((NET, LAW, Z, 1), {}, "`classes` must be at least 2"),
        ((NET, nngp.Jeffreys(), Z, 2), {}, "density that integrates to 1"),
        ((NET, LAW, Z[0], 2), {}, "`inducing` must have shape"),
        ((NET, LAW, np.array([[np.nan, 1.0]]), 2), {}, "`inducing` must be finite"),
        ((NET, LAW, np.ones((3, 2)), 2), {"jitter": 0.0}, "positive definite"),
        ((NET, LAW, Z, 2), {"jitter": -1.0}, "`jitter` must be"),
    ],
)
def test_bad_models(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        nngp.Classification(*arguments, **options)


@pytest.mark.parametrize("s", [1.0, 5.0, 30.0])
def test_pointwise_terms_are_of_the_probability(s):
    """Two classes: E of the logistic function of a normal variable, by scipy."""
    from scipy.integrate import quad

    labels = nngp.SoftmaxLabels(jnp.array([[s, 0.0]]), jnp.array([s]))

    def mean(function):
        weighted = lambda z: function(s + np.sqrt(2) * s * z) * stats.norm.pdf(z)
        return quad(weighted, -12, 12, points=[-np.sqrt(0.5)], limit=500)[0]

    probability = mean(lambda x: np.exp(-np.logaddexp(0, -x)))
    assert_allclose(labels.log_probs[0, 0], np.log(probability), atol=5e-4)
    bound = mean(lambda x: -np.logaddexp(0, -x))
    assert_allclose(labels.log_prob(jnp.array([0]))[0], bound, atol=5e-4)


def test_log_likelihood_of_a_posterior_is_of_the_probability(key):
    x, y = np.array([[1.0, 0.0], [0.5, -1.0], [-2.0, 0.3], [0.2, 0.7]]), np.array([0, 1, 1, 0])
    model = nngp.Classification(NET, nngp.PointMass(4.0), Z, 2)
    target = wh.condition(model, y, x)
    draw = target.constrain(target.init(key=key))
    log_probs = draw.likelihood(x).log_probs
    found = target.pointwise_given_rest(draw)["y"]
    assert_allclose(found, log_probs[np.arange(4), y], rtol=1e-10)
