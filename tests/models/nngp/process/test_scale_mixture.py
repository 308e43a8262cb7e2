"""Scale mixtures: golden values, closed forms, quadrature, limits, scaling, bad input."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.integrate import quad
from scipy.special import kve

from whence.models.nngp import (
    GIG,
    BurrXII,
    Dense,
    Draws,
    Erf,
    FromDistribution,
    HalfCauchy,
    InverseGamma,
    Jeffreys,
    NormalScaleMixture,
    PointMass,
    ScaleMixture,
    Serial,
    StudentT,
    importance_nodes,
)

X = np.array([[1.0, 0.0], [0.5, -1.0], [-2.0, 0.3]])
Y = np.array([0.3, -1.2, 2.0])
NEW = np.array([[0.2, 0.7], [1.5, 1.5]])
VALUE = np.array([0.5, -0.4])
NET = Serial(Dense(2.0, 0.1), Erf(), Dense(2.0, 0.1), Erf(), Dense())
IG, BURR = InverseGamma(2.5, 1.5), BurrXII(2.0, 1.0)


def _given(law, noise=0.01, y=Y):
    return ScaleMixture(NET, law, noise).condition(X, y)


def test_golden_statistics():
    given = _given(IG)
    loc, covariance = given.moments(NEW)
    assert given.size == 3
    assert_allclose(given.quadratic, 19.41293230831485, rtol=1e-13)
    assert_allclose(given.log_det, -2.761493588915247, rtol=1e-13)
    assert_allclose(loc[:, 0], [1.77929711, 1.1199671], atol=1e-8)
    assert_allclose(covariance, [[0.1860386, 0.13110742], [0.13110742, 0.22251939]], atol=1e-8)


def test_golden_inverse_gamma():
    given = _given(IG)
    latent = given.latent(NEW)
    assert_allclose(given.log_evidence, -8.52129322373, atol=1e-10)
    assert_allclose(latent.df, 8)
    scale = latent.scale_tril @ latent.scale_tril.T
    assert_allclose(scale, [[0.52120883, 0.36731271], [0.36731271, 0.62341401]], atol=1e-8)
    assert_allclose(latent.log_prob(VALUE), -3.1130097515079, atol=1e-11)


@pytest.mark.parametrize(
    ("law", "golden"),
    [
        (BURR, -7.692610162207),
        (GIG(0.7, 1.2, 0.9), -6.75095654967),
        (HalfCauchy(1.5), -6.999597148471),
    ],
)
def test_golden_evidence(law, golden):
    # By the evidence of scipy's closed forms (GIG: Bessel, half Cauchy: Tricomi) or quad.
    assert_allclose(_given(law).log_evidence, golden, atol=2e-9)


def test_golden_burr():
    given = _given(BURR)
    posterior = given.scale
    assert_allclose(posterior.mean, 4.31628985, atol=2e-8)
    assert_allclose(posterior.expectation(lambda v: 1 / v), 0.318116825341, atol=1e-10)
    assert_allclose(posterior.expectation(jnp.log), 1.285907921686, atol=1e-10)
    assert_allclose(given.latent(NEW).log_prob(VALUE), -3.0437462397, atol=1e-9)


def test_golden_point_mass():
    assert_allclose(_given(PointMass(0.7)).log_evidence, -14.7074366, atol=1e-7)


@pytest.mark.parametrize("law", [IG, BURR, HalfCauchy(1.5), Jeffreys(), PointMass(0.7)])
def test_marginals_are_those_of_the_joint(law):
    given = _given(law)
    for joint, each in (
        (given.latent(NEW), given.latent_marginals(NEW)),
        (given.observation(NEW), given.observation_marginals(NEW)),
    ):
        assert each.batch_shape == (2,)
        assert_allclose(each.mean, joint.mean)
        assert_allclose(each.variance, joint.variance)
        low = each.icdf(np.array([0.05, 0.5]))
        assert_allclose(each.cdf(low), [0.05, 0.5], atol=1e-8)
    several = _given(law, y=np.stack([Y, -Y], 1)).latent_marginals(NEW)
    assert several.batch_shape == (2, 2)
    assert_allclose(several.mean[:, 0], -several.mean[:, 1])


@pytest.mark.parametrize("df", [0.5, 1.0, 3.3, 40.0, 1e6])
def test_quantiles_of_students_t(df):
    q = np.array([0.0, 1e-12, 1e-4, 0.3, 0.5, 0.5 + 1e-9, 0.999, 1.0])
    ours, scipy = StudentT(df, 0.0, 2.0), stats.t(df, 0, 2)
    # JAX's incomplete beta function at 1e6 degrees of freedom: relative error 4e-9, and 1e-5
    # at a probability of 1e-12.
    assert_allclose(ours.icdf(q), scipy.ppf(q), rtol=1e-6)
    z = np.array([-1e4, -3.0, -1e-6, 0.0, 0.4, 7.0, 1e6])
    assert_allclose(ours.cdf(z), scipy.cdf(z), rtol=1e-8)


@pytest.mark.parametrize("law", [IG, BURR, HalfCauchy(1.5), PointMass(0.7)])
def test_conflict_is_a_p_value(law):
    # Of data from the prior the p-value is uniform: by the law of q given v.
    key = jr.key(3)
    quadratic = np.asarray(
        _prior_scales(law, key) * jr.chisquare(jr.key(4), 3.0, shape=(4000,))
    )
    above = np.asarray(jax.vmap(lambda q: law.exceedance(3, q))(quadratic))
    assert stats.kstest(above, "uniform").pvalue > 1e-4
    given = _given(law)
    above = law.exceedance(3, given.quadratic)
    assert_allclose(given.conflict, 2 * min(above, 1 - above))
    assert _given(law, y=1e4 * Y).conflict < 0.02
    assert np.isnan(_given(Jeffreys()).conflict)


def _prior_scales(law, key):
    if law is IG:
        return 1.5 / jr.gamma(key, 2.5, (4000,))
    if law is BURR:
        return jnp.sqrt(1 / jr.uniform(key, (4000,)) - 1)
    if isinstance(law, HalfCauchy):
        return (1.5 * jr.cauchy(key, (4000,))) ** 2
    return jnp.full(4000, 0.7)


def test_evidence_is_that_of_students_t():
    covariance = np.asarray(NET.nngp(X)) + 0.01 * np.eye(3)
    t = stats.multivariate_t(np.zeros(3), 1.5 / 2.5 * covariance, df=5)
    assert_allclose(_given(IG).log_evidence, t.logpdf(Y), rtol=1e-12)


@pytest.mark.parametrize("law", [IG, BURR, HalfCauchy(1.5), PointMass(0.7)])
def test_chain_rule(law):
    process = ScaleMixture(NET, law, 0.01)
    before, whole = process.condition(X[:2], Y[:2]), process.condition(X, Y)
    step = before.observation(X[2:]).log_prob(Y[2:])
    assert_allclose(whole.log_evidence, before.log_evidence + step, rtol=1e-8)
    online = before.condition(X[2:], Y[2:])
    assert_allclose(online.log_evidence, whole.log_evidence, rtol=1e-12)
    assert_allclose(online.latent(NEW).log_prob(VALUE), whole.latent(NEW).log_prob(VALUE))
    assert_allclose(process.log_evidence(X, Y), whole.log_evidence, rtol=1e-13)


@pytest.mark.parametrize("size", [1, 3, 100, 10_000])
@pytest.mark.parametrize("conflict", [0.1, 1.0, 100.0])
def test_quadrature_is_the_closed_form(size, conflict):
    q = jnp.asarray(size * conflict)
    closed = IG.log_integral(size, q)
    by_nodes = FromDistribution(dist.InverseGamma(2.5, 1.5)).log_integral(size, q)
    assert_allclose(by_nodes, closed, atol=5e-9, rtol=1e-11)


def test_quadrature_of_burr_is_that_of_scipy():
    for size, q in ((1, 0.2), (30, 3000.0)):
        at = np.log(q / size)

        def integrand(u):
            density = stats.burr12(2, 1).pdf(np.exp(u))
            exponent = u - size / 2 * (u - at) - q / 2 * (np.exp(-u) - np.exp(-at))
            return density * np.exp(exponent)

        truth = quad(integrand, at - 15, at + 25, points=[at, at - 1, at + 1], limit=400)[0]
        log_truth = np.log(truth) - size / 2 * at - q / 2 * np.exp(-at)
        assert_allclose(BURR.log_integral(size, jnp.asarray(q)), log_truth, atol=1e-8)


def test_gig_is_normalised():
    v, (order, chi, psi) = np.array([0.2, 1.0, 5.0]), (0.7, 1.2, 0.9)
    root = np.sqrt(chi * psi)
    constant = order / 2 * np.log(psi / chi) - np.log(2 * kve(order, root)) + root
    truth = constant + (order - 1) * np.log(v) - (chi / v + psi * v) / 2
    assert_allclose(GIG(order, chi, psi).log_density(jnp.asarray(v)), truth, atol=2e-9)


@pytest.mark.parametrize("size", [3, 100])
def test_importance_sampling_agrees(key, size):
    q = jnp.asarray(1.3 * size)
    nodes = importance_nodes(BURR, size, q, key=key, num_draws=4000)
    error = np.sqrt(1 / nodes.ess - 1 / 4000)  # of the log of a mean, by the delta method
    assert abs(nodes.log_integral - BURR.log_integral(size, q)) < 4.5 * error
    assert nodes.khat < 0.7
    # Effective shares measured elsewhere: 0.77 at 3 observations, 0.994 at 100.
    assert nodes.ess / 4000 > {3: 0.7, 100: 0.98}[size]


def test_draws_of_a_law(key):
    draws = Draws(1.5 / jr.gamma(key, 2.5, (20_000,)))
    given, truth = _given(draws), _given(IG)
    nodes = draws.nodes(given.size, given.quadratic)
    error = np.sqrt(1 / nodes.ess - 1 / 20_000)
    assert abs(given.log_evidence - truth.log_evidence) < 4.5 * error
    density = given.latent(NEW).log_prob(VALUE) - truth.latent(NEW).log_prob(VALUE)
    assert abs(density) < 4.5 * error
    assert nodes.khat < 0.7


def test_known_scale_is_the_limit():
    near, at = _given(InverseGamma(1e6, 1e6)), _given(PointMass(1.0))
    # Apart by terms of q / shape and n / shape.
    assert_allclose(near.log_evidence, at.log_evidence, atol=2e-4)
    covariance = np.asarray(NET.nngp(X)) + 0.01 * np.eye(3)
    normal = stats.multivariate_normal(np.zeros(3), covariance)
    assert_allclose(at.log_evidence, normal.logpdf(Y), rtol=1e-12)
    assert_allclose(near.latent(NEW).log_prob(VALUE), at.latent(NEW).log_prob(VALUE), atol=2e-4)


@pytest.mark.parametrize("shape", [0.7, 99.0, 101.0, 1e6])
def test_evidence_keeps_its_digits(shape):
    """Four observations: the ratio of gammas is `shape (shape + 1)`, each alone near 1e7."""
    scale = 1.2 * shape
    truth = np.log(shape) + np.log1p(shape) - 2 * np.log(scale)
    truth -= (shape + 2) * np.log1p(2.0 / scale)
    for dtype, rtol in ((np.float64, 1e-11), (np.float32, 1e-4)):
        law = InverseGamma(jnp.asarray(shape, dtype), jnp.asarray(scale, dtype))
        assert_allclose(law.log_integral(4, jnp.asarray(4.0, dtype)), truth, rtol=rtol)


def test_jeffreys_predicts_by_students_t():
    given = _given(Jeffreys())
    loc, covariance = given.moments(NEW)
    t = stats.multivariate_t(loc[:, 0], given.quadratic / 3 * covariance, df=3)
    assert_allclose(given.latent(NEW).log_prob(VALUE), t.logpdf(VALUE), rtol=1e-9)
    with pytest.raises(ValueError, match="improper"):
        ScaleMixture(NET, Jeffreys()).prior(X).sample(jr.key(0))


def test_scaling_observations_scales_predictions():
    one, three = _given(IG), _given(InverseGamma(2.5, 9 * 1.5), y=3 * Y)
    assert_allclose(three.latent(NEW).mean, 3 * one.latent(NEW).mean, rtol=1e-12)
    assert_allclose(three.latent(NEW).variance, 9 * one.latent(NEW).variance, rtol=1e-12)


def test_without_noise_it_interpolates():
    latent = _given(IG, noise=0.0).latent(X)
    assert_allclose(latent.mean, Y, atol=1e-12)
    assert_allclose(latent.variance, 0, atol=1e-12)


def test_prior_predictive_follows_f(key):
    """Of data simulated from the process, (q / n) (shape / scale) is F(n, 2 shape)."""
    process = ScaleMixture(NET, IG, 0.01)
    draws = process.prior(X, noisy=True).sample(key, (5000,))
    covariance = np.asarray(NET.nngp(X)) + 0.01 * np.eye(3)
    q = np.einsum("ki,ij,kj->k", draws, np.linalg.inv(covariance), draws)
    # One false alarm in ten thousand keys.
    assert stats.kstest(q / 3 * 2.5 / 1.5, stats.f(3, 5).cdf).pvalue > 1e-4


def test_outputs_share_the_scale():
    y = np.stack([Y, np.array([1.0, 0.2, -0.7])], axis=1)
    given = _given(IG, y=y)
    covariance = np.kron(np.eye(2), np.asarray(NET.nngp(X)) + 0.01 * np.eye(3))
    t = stats.multivariate_t(np.zeros(6), 1.5 / 2.5 * covariance, df=5)
    assert_allclose(given.log_evidence, t.logpdf(y.T.ravel()), rtol=1e-12)
    latent = given.latent(NEW)
    assert latent.event_shape == (4,)
    assert_allclose(latent.mean[:2], _given(IG).latent(NEW).mean, rtol=1e-12)
    assert_allclose(latent.df, 5 + 6)


def test_observation_adds_the_noise():
    given = _given(BURR, noise=0.3)
    added = given.observation(NEW).variance - given.latent(NEW).variance
    assert_allclose(added, 0.3 * given.scale.mean, rtol=1e-9)


def test_mixture_against_students_t(key):
    """Mixed over nodes of an inverse gamma law it is Student's t: density and marginals."""
    law = FromDistribution(dist.InverseGamma(2.5, 1.5), order=2.5)
    by_nodes, closed = _given(law).latent(NEW), _given(IG).latent(NEW)
    assert isinstance(by_nodes, NormalScaleMixture)
    many = np.stack([VALUE, -VALUE, 10 * VALUE])
    assert_allclose(by_nodes.log_prob(many), closed.log_prob(many), rtol=1e-8)
    assert_allclose(by_nodes.variance, closed.variance, rtol=1e-7)
    scale = np.sqrt(np.diagonal(closed.scale_tril @ closed.scale_tril.T))
    t = stats.t(8, loc=np.asarray(closed.loc), scale=scale)
    marginals = by_nodes.marginals()
    assert_allclose(marginals.log_prob(VALUE), t.logpdf(VALUE), rtol=1e-8)
    assert_allclose(marginals.cdf(VALUE), t.cdf(VALUE), rtol=1e-8)
    for level in (0.01, 0.5, 0.999):
        assert_allclose(marginals.icdf(jnp.array(level)), t.ppf(level), rtol=1e-6)
    for entry, draws in (
        (0, by_nodes.sample(key, (4000,))),
        (1, marginals.sample(key, (4000,))),
    ):
        law = stats.t(8, loc=float(closed.loc[entry]), scale=scale[entry])
        assert stats.kstest(np.asarray(draws)[:, entry], law.cdf).pvalue > 1e-4


def test_posterior_of_the_scale(key):
    posterior = _given(FromDistribution(dist.InverseGamma(2.5, 1.5))).scale
    truth = stats.invgamma(4.0, scale=1.5 + 19.41293230831485 / 2)
    v = np.array([0.5, 3.0, 20.0])
    assert_allclose(posterior.log_prob(jnp.asarray(v)), truth.logpdf(v), rtol=1e-8)
    assert_allclose(
        [posterior.mean, posterior.variance], [truth.mean(), truth.var()], rtol=1e-7
    )
    assert stats.kstest(np.asarray(posterior.sample(key, (4000,))), truth.cdf).pvalue > 1e-4


def test_moments_that_do_not_exist_are_not_reported():
    heavy = ScaleMixture(NET, HalfCauchy(1.0)).prior(X[:1])
    assert np.all(np.isnan(heavy.mean))
    assert np.all(np.isinf(heavy.variance))
    one = ScaleMixture(NET, HalfCauchy(1.0)).condition(X[:1], Y[:1])
    assert np.all(np.isinf(one.latent(NEW).variance))
    assert "infinite variance" in one.remarks[-1]
    assert _given(IG).remarks == ()


def test_gradient_of_the_evidence():
    def evidence(parameters):
        weight, noise, c = parameters
        net = Serial(Dense(weight, 0.1), Erf(), Dense())
        return ScaleMixture(net, BurrXII(c, 1.0), noise).log_evidence(X, Y)

    point, h = jnp.array([1.5, 0.05, 2.0]), 1e-5
    slope = jax.jit(jax.grad(evidence))(point)
    evidence = jax.jit(evidence)
    numeric = [
        (evidence(point + h * e) - evidence(point - h * e)) / (2 * h) for e in jnp.eye(3)
    ]
    assert_allclose(slope, numeric, rtol=1e-6)


def test_repeated_rows_and_constant_columns_are_said():
    x = np.array([[1.0, 0.5], [1.0, 0.5], [1.0, -2.0]])
    given = ScaleMixture(NET, IG).condition(x, np.array([1.0, 1.0, 0.0]))
    said = " ".join(given.remarks)
    assert given.jitter > 0
    assert "1 of 3 rows" in said
    assert "never vary (1: 0)" in said
    assert "jitter" in said
    assert np.all(np.isfinite(given.latent(NEW).mean))


WRONG = {
    "noise. must be": lambda: ScaleMixture(NET, IG, -0.1),
    "shape. must be positive and finite": lambda: InverseGamma(0.0, 1.0),
    "c. must be": lambda: BurrXII(-1.0, 1.0),
    "y. must have shape": lambda: _given(IG, y=Y[:2]),
    "y. must be finite": lambda: _given(IG, y=np.array([np.nan, 0.0, 1.0])),
    "outputs of the earlier": lambda: _given(IG).condition(NEW, np.ones((2, 2))),
    "of one number": lambda: FromDistribution(dist.Normal(jnp.zeros(2))),
    "one shape": lambda: _given(IG).latent(np.ones((2, 3))),
    "at least 1 to make": lambda: importance_nodes(BURR, 0, jnp.ones(()), key=jr.key(0)),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input(words):
    with pytest.raises(ValueError, match=words):
        WRONG[words]()


def test_not_positive_definite_says_what_to_do():
    from whence.models.nngp.process._cholesky import cholesky

    with pytest.raises(ValueError, match="not, even with a jitter.*raise `noise`"):
        cholesky(jnp.array([[1.0, 2.0], [2.0, 1.0]]))
