"""Noise of a variance of its own: brute force, limits, chain rule, gradients, distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.integrate import dblquad, quad

from whence.models.nngp import (
    BurrXII,
    Dense,
    Draws,
    Erf,
    HalfCauchy,
    IndependentNoise,
    InverseGamma,
    Jeffreys,
    NormalMixture,
    PointMass,
    ScaleMixture,
    Serial,
)
from whence.models.nngp.process._spectrum import spectrum, statistics

SLOW = pytest.mark.slow
X = np.array([[1.0, 0.0], [0.5, -1.0], [-2.0, 0.3]])
Y = np.array([0.3, -1.2, 2.0])
NEW = np.array([[0.2, 0.7], [1.5, 1.5]])
VALUE = np.array([0.5, -0.4])
NET = Serial(Dense(2.0, 0.1), Erf(), Dense(2.0, 0.1), Erf(), Dense())
KERNEL = np.asarray(NET.nngp(X))
SCALE, NOISE = InverseGamma(2.5, 1.5), InverseGamma(2.0, 0.3)
PRIORS = stats.invgamma(2.5, scale=1.5), stats.invgamma(2.0, scale=0.3)


def _log_density(kernel, y, log_v, log_s):
    """Log of what is integrated, over log v and log s2, by eigenvalues."""
    values, vectors = np.linalg.eigh(kernel)
    spread = np.exp(log_v) * values + np.exp(log_s)
    normal = np.sum(stats.norm(0, np.sqrt(spread)).logpdf(vectors.T @ y))
    priors = PRIORS[0].logpdf(np.exp(log_v)) + PRIORS[1].logpdf(np.exp(log_s))
    return normal + priors + log_v + log_s


def _trapezoid(kernel, y, function=lambda v, s: 1.0, priors=PRIORS):
    """Integral over a grid of log v and log s2: exponentially exact, and independent."""
    u = np.linspace(-12, 14, 521)
    values, vectors = np.linalg.eigh(kernel)
    squares = (vectors.T @ y) ** 2
    v, s = np.exp(u)[:, None], np.exp(u)[None, :]
    spread = v[..., None] * values + s[..., None]
    normal = -np.sum(np.log(2 * np.pi * spread) + squares / spread, axis=-1) / 2
    weight = normal + priors[0].logpdf(v) + u[:, None] + priors[1].logpdf(s) + u
    return np.sum(np.exp(weight) * function(v, s)) * (u[1] - u[0]) ** 2


@SLOW
def test_evidence_is_the_double_integral():
    at = -6.0  # near its logarithm, for scipy's absolute tolerance
    truth = dblquad(
        lambda b, a: np.exp(_log_density(KERNEL, Y, a, b) - at), -9, 12, -10, 10, epsrel=1e-7
    )[0]
    found = IndependentNoise(NET, SCALE, NOISE).log_evidence(X, Y)
    assert_allclose(found, np.log(truth) + at, atol=2e-6)


@pytest.mark.parametrize("rows", [3, pytest.param(10, marks=SLOW)])
def test_evidence_and_posterior(rows):
    rng = np.random.default_rng(rows)
    x = X if rows == 3 else rng.normal(size=(rows, 2))
    y = Y if rows == 3 else rng.normal(size=rows)
    kernel = np.asarray(NET.nngp(x))
    given = IndependentNoise(NET, SCALE, NOISE).condition(x, y)
    whole = _trapezoid(kernel, y)
    assert_allclose(given.log_evidence, np.log(whole), atol=2e-6)
    for function in (lambda v, s: np.log(v), lambda v, s: s, lambda v, s: v / (v + s)):
        truth = _trapezoid(kernel, y, function) / whole
        found = given.scales.expectation(lambda v, s: function(np.asarray(v), np.asarray(s)))
        assert_allclose(found, truth, rtol=5e-6)
    density = given.log_posterior(np.array([0.7, 2.0]), np.array([0.1, 3.0]))
    truth = [
        _log_density(kernel, y, np.log(v), np.log(s)) - np.log(v * s) - np.log(whole)
        for v, s in ((0.7, 0.1), (2.0, 3.0))
    ]
    assert_allclose(density, truth, atol=2e-6)


@SLOW
@pytest.mark.parametrize("rows", [1, 200])
@pytest.mark.parametrize("conflict", [0.1, 30.0])
def test_evidence_in_conflict_with_priors(rows, conflict):
    rng = np.random.default_rng(rows)
    x, y = rng.normal(size=(rows, 2)), conflict * rng.normal(size=rows)
    found = IndependentNoise(NET, BurrXII(2.0, 1.0), HalfCauchy(0.3)).log_evidence(x, y)
    half_cauchy = stats.halfcauchy(scale=0.3)

    class Noise:
        def logpdf(self, s):
            return half_cauchy.logpdf(np.sqrt(s)) - np.log(2 * np.sqrt(s))

    at = float(found)
    # The half Cauchy's tails are of exp(-|log s2| / 2): one row leaves them as they are.
    u = np.linspace(-45, 45, 1801) if rows == 1 else np.linspace(-16, 16, 801)
    values, vectors = np.linalg.eigh(np.asarray(NET.nngp(x)))
    squares, total = (vectors.T @ y) ** 2, 0.0
    for log_v in u:
        spread = np.exp(log_v) * values + np.exp(u)[:, None]
        weight = -np.sum(np.log(2 * np.pi * spread) + squares / spread, axis=-1) / 2 + u
        weight += Noise().logpdf(np.exp(u)) + stats.burr12(2, 1).logpdf(np.exp(log_v)) + log_v
        total += np.sum(np.exp(weight - at)) * (u[1] - u[0]) ** 2
    assert_allclose(np.log(total), 0, atol=1e-5)


@SLOW
def test_known_scales_are_gaussian_process_regression():
    given = IndependentNoise(NET, 1.7, 0.2).condition(X, Y)
    covariance = 1.7 * KERNEL + 0.2 * np.eye(3)
    normal = stats.multivariate_normal(np.zeros(3), covariance)
    assert_allclose(given.log_evidence, normal.logpdf(Y), rtol=1e-12)
    read, own = 1.7 * np.asarray(NET.nngp(NEW, X)), 1.7 * np.asarray(NET.nngp(NEW))
    mean = read @ np.linalg.solve(covariance, Y)
    spread = own - read @ np.linalg.solve(covariance, read.T)
    for law, noise in ((given.latent(NEW), 0.0), (given.observation(NEW), 0.2)):
        truth = stats.multivariate_normal(mean, spread + noise * np.eye(2))
        assert_allclose(law.log_prob(VALUE), truth.logpdf(VALUE), rtol=1e-10)
        assert_allclose(law.mean, mean, rtol=1e-10)
        assert_allclose(law.variance, np.diag(spread) + noise, rtol=1e-10)


@SLOW
@pytest.mark.parametrize("known", ["scale", "noise"])
def test_one_known_scale(known):
    laws = {"scale": SCALE, "noise": NOISE} | {known: 0.4}
    prior = PRIORS[1 if known == "scale" else 0]

    def integrand(u):
        v, s = (0.4, np.exp(u)) if known == "scale" else (np.exp(u), 0.4)
        normal = stats.multivariate_normal(np.zeros(3), v * KERNEL + s * np.eye(3))
        return np.exp(normal.logpdf(Y) + prior.logpdf(np.exp(u)) + u)

    truth = np.log(quad(integrand, -12, 14, points=[-1, 0, 1, 2], epsabs=1e-14)[0])
    assert_allclose(IndependentNoise(NET, **laws).log_evidence(X, Y), truth, atol=1e-8)


@SLOW
def test_at_a_fixed_ratio_it_is_noise_scaled_with_the_process():
    """`s2 = r v`, node by node: locations and statistics of `ScaleMixture` with noise r."""
    given = IndependentNoise(NET, SCALE, NOISE).condition(X, Y)
    latent = given.latent(NEW)
    for node in (20, 32, 40):
        ratio = float(jnp.exp(given.scales.log_ratios[node]))
        scaled = ScaleMixture(NET, PointMass(1.0), ratio).condition(X, Y)
        loc, covariance = scaled.moments(NEW)
        assert_allclose(latent.locs[node], loc[:, 0], rtol=1e-7)
        tril = latent.scale_trils[node]
        assert_allclose(tril @ tril.T, covariance, rtol=1e-6, atol=1e-12)
        found = statistics(
            jnp.asarray(KERNEL),
            jnp.asarray(Y)[:, None],
            jnp.log(jnp.array([ratio])),
            spectrum(jnp.asarray(KERNEL)),
        )
        assert_allclose(found[0][0], scaled.quadratic, rtol=1e-9)
        assert_allclose(found[1][0], scaled.log_det, rtol=1e-9)


@SLOW
@pytest.mark.parametrize("outputs", [None, 2])
def test_chain_rule(outputs):
    """The density of new observations is the ratio of two evidences."""
    shape = () if outputs is None else (outputs,)
    new = np.random.default_rng(5).normal(size=(2, *shape))
    y = np.broadcast_to(Y.reshape(3, *(1,) * len(shape)), (3, *shape)) + 0.1 * np.arange(
        3.0
    ).reshape(3, *(1,) * len(shape))
    given = IndependentNoise(NET, SCALE, NOISE).condition(X, y)
    more = given.condition(NEW, new)
    step = more.log_evidence - given.log_evidence
    # The nodes are those for the observations, the density is of two more.
    assert_allclose(given.observation(NEW).log_prob(new.T.reshape(-1)), step, atol=1e-5)


@SLOW
def test_marginals(key):
    given = IndependentNoise(NET, SCALE, NOISE).condition(X, Y)
    joint, each = given.observation(NEW), given.observation_marginals(NEW)
    assert isinstance(joint, NormalMixture)
    assert_allclose(joint.marginals().mean, each.mean, rtol=1e-10)
    assert_allclose(joint.marginals().variance, each.variance, rtol=1e-10)
    one = given.observation(NEW[:1])
    assert_allclose(one.log_prob(VALUE[:1]), each.log_prob(VALUE)[0], rtol=1e-10)
    h = 1e-5
    slope = (each.cdf(VALUE + h) - each.cdf(VALUE - h)) / (2 * h)
    assert_allclose(slope, jnp.exp(each.log_prob(VALUE)), rtol=1e-7)
    levels = jnp.array([[0.01, 0.01], [0.5, 0.5], [0.999, 0.999]])
    assert_allclose(each.cdf(each.icdf(levels)), levels, rtol=1e-9)
    for entry, draws in ((0, joint.sample(key, (3000,))), (1, each.sample(key, (3000,)))):
        test = stats.kstest(
            np.asarray(draws)[:, entry],
            lambda v: np.asarray(each.cdf(jnp.stack([v, v], axis=1)))[:, entry],
        )
        assert test.pvalue > 1e-4  # one false alarm in ten thousand keys


@SLOW
def test_moments_against_nodes_of_brute_force():
    given = IndependentNoise(NET, SCALE, NOISE).condition(X, Y)
    read, own = np.asarray(NET.nngp(NEW, X)), np.diag(np.asarray(NET.nngp(NEW)))

    def moments(v, s):
        loc = read @ np.linalg.solve(v * KERNEL + s * np.eye(3), v * Y)
        gone = np.linalg.solve(v * KERNEL + s * np.eye(3), v * read.T)
        return loc, v * (own - np.sum(read.T * gone, axis=0))

    u = np.linspace(-10, 12, 61)
    step = [(np.exp(a), np.exp(b), _log_density(KERNEL, Y, a, b)) for a in u for b in u]
    weights = np.exp([w for *_, w in step])
    locs, spreads = (np.array(m) for m in zip(*(moments(v, s) for v, s, _ in step)))
    weights /= weights.sum()
    mean = weights @ locs
    variance = weights @ spreads + weights @ (locs - mean) ** 2
    latent = given.latent_marginals(NEW)
    assert_allclose(latent.mean, mean, rtol=1e-5)
    assert_allclose(latent.variance, variance, rtol=1e-4)
    assert np.ptp(np.asarray(latent.locs)[:, 0]) > 0.5  # they do move


@SLOW
@pytest.mark.parametrize("repeated", [False, True])
def test_gradient_of_the_evidence(repeated):
    """Finite differences, also where eigenvalues of the kernel coincide."""
    x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]) if repeated else X
    y = np.array([0.3, -1.2, 2.0, 0.4])[: len(x)]

    def evidence(parameters):
        weight, shape, noise = parameters
        net = Serial(Dense(weight, 0.1), Erf(), Dense())
        return IndependentNoise(net, InverseGamma(shape, 1.5), noise).log_evidence(x, y)

    point, h = jnp.array([1.5, 2.0, 0.3]), 1e-5
    if repeated:  # a circulant kernel: two of four eigenvalues are one
        values = np.linalg.eigvalsh(np.asarray(Serial(Dense(1.5, 0.1), Erf(), Dense()).nngp(x)))
        assert np.min(np.diff(values)) < 1e-14
    slope = jax.jit(jax.grad(evidence))(point)
    evidence = jax.jit(evidence)
    numeric = [
        (evidence(point + h * e) - evidence(point - h * e)) / (2 * h) for e in jnp.eye(3)
    ]
    assert_allclose(slope, numeric, rtol=1e-6, atol=1e-8)


@SLOW
def test_second_derivatives():
    known = lambda k: jax.lax.stop_gradient(spectrum(k))

    def total(t):
        kernel = jnp.asarray(KERNEL) + t * jnp.outer(jnp.asarray(Y), jnp.asarray(Y))
        both = statistics(kernel, jnp.asarray(Y)[:, None], jnp.array([-1.0, t]), known(kernel))
        return jnp.sum(both[0]) + jnp.sum(both[1])

    def plain(t):
        kernel = jnp.asarray(KERNEL) + t * jnp.outer(jnp.asarray(Y), jnp.asarray(Y))
        found = 0.0
        for log_ratio in (-1.0, t):
            a = kernel + jnp.exp(log_ratio) * jnp.eye(3)
            found += jnp.asarray(Y) @ jnp.linalg.solve(a, jnp.asarray(Y))
            found += jnp.linalg.slogdet(a)[1]
        return found

    t = jnp.array(0.3)
    assert_allclose(total(t), plain(t), rtol=1e-10)
    assert_allclose(jax.grad(total)(t), jax.grad(plain)(t), rtol=1e-9)
    assert_allclose(jax.hessian(total)(t), jax.hessian(plain)(t), rtol=1e-8)


@SLOW
def test_outputs_share_both_scales():
    y = np.stack([Y, np.array([1.0, 0.2, -0.7])], axis=1)
    given = IndependentNoise(NET, 1.7, 0.2).condition(X, y)
    normal = stats.multivariate_normal(np.zeros(3), 1.7 * KERNEL + 0.2 * np.eye(3))
    assert_allclose(given.log_evidence, normal.logpdf(y.T).sum(), rtol=1e-12)
    latent, each = given.latent(NEW), given.latent_marginals(NEW)
    assert latent.event_shape == (4,)
    assert each.batch_shape == (2, 2)
    assert_allclose(latent.mean.reshape(2, 2).T, each.mean, rtol=1e-10)
    assert_allclose(latent.variance.reshape(2, 2).T, each.variance, rtol=1e-10)
    single = IndependentNoise(NET, 1.7, 0.2).condition(X, Y).latent_marginals(NEW)
    assert_allclose(each.mean[:, 0], single.mean, rtol=1e-10)


@SLOW
def test_remarks():
    apart = 40 * np.eye(3)  # without a bias in the kernel: all inputs are unrelated
    net = Serial(Dense(), Erf(), Dense())
    given = IndependentNoise(net, 1.0, 0.2).condition(apart, Y)
    assert "do not tell" in " ".join(given.remarks)
    assert IndependentNoise(NET, 1.0, 0.2).condition(X, Y).remarks == ()


WRONG = {
    "noise. must be positive and finite": lambda: IndependentNoise(NET, SCALE, 0.0),
    "scale. must be a law with a density": lambda: IndependentNoise(NET, Jeffreys(), NOISE),
    "known by draws only": lambda: IndependentNoise(NET, SCALE, Draws(jnp.ones(3))),
    "of one number": lambda: IndependentNoise(NET, dist.Normal(jnp.zeros(2)), NOISE),
    "y. must have shape": lambda: IndependentNoise(NET, 1.0, 1.0).condition(X, Y[:2]),
    "outputs of the earlier": lambda: (
        IndependentNoise(NET, 1.0, 1.0).condition(X, Y).condition(NEW, np.ones((2, 2)))
    ),
    "has no density": lambda: (
        IndependentNoise(NET, 1.0, 1.0)
        .condition(X, Y)
        .log_posterior(jnp.ones(()), jnp.ones(()))
    ),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input(words):
    with pytest.raises(ValueError, match=words):
        WRONG[words]()
