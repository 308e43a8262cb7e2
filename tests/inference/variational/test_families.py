"""Families made of families, and the scale mixture: exact optima, densities, bad names."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.special import digamma, gammaln

import whence as wh
from whence.core._json import from_json, to_json
from whence.inference.variational import (
    BBVI,
    Blocks,
    ClosedFormEntropy,
    Factors,
    FullRank,
    MeanField,
    PathDerivative,
    Point,
    ScaleMixtureFamily,
)

X = np.array([[1.0, 0.2], [0.4, -1.0], [-1.5, 0.3], [0.1, 0.1], [0.9, -0.7]])
Y = np.array([1.2, -0.9, -2.0, 0.3, 0.1])
SHAPE, RATE, NOISE = 2.0, 1.5, 0.3
LAYOUT = (("v", 1), ("white", 2))
FORMS = [True, pytest.param(False, marks=pytest.mark.slow)]


class Conjugate(wh.Model):
    """`y ~ N(X u, v NOISE)` with `u ~ N(0, v)`: u and v are known in closed form."""

    centred: bool = False
    v: jax.Array = wh.latent(dist.InverseGamma(SHAPE, RATE))
    white: jax.Array = wh.latent(
        lambda m: dist.Normal(0.0, jnp.sqrt(m.v) if m.centred else 1.0), shape=2
    )

    def likelihood(self, x):
        root = jnp.sqrt(self.v)
        u = self.white if self.centred else root * self.white
        return dist.Normal(x @ u, root * NOISE**0.5)


def truth():
    """a, b, mean, covariance for v = 1, and the evidence."""
    cov = X @ X.T + NOISE * np.eye(5)
    q = Y @ np.linalg.solve(cov, Y)
    a, b = SHAPE + 2.5, RATE + q / 2
    precision = np.eye(2) + X.T @ X / NOISE
    mean = np.linalg.solve(precision, X.T @ Y / NOISE)
    evidence = gammaln(a) - gammaln(SHAPE) + SHAPE * np.log(RATE) - a * np.log(b)
    evidence -= 2.5 * np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(cov)[1]
    return a, b, mean, np.linalg.inv(precision), evidence


def at_truth(family):
    """Parameters at which the family is the posterior."""
    a, b, mean, covariance, _ = truth()
    unit = np.sqrt(b / a)
    factor = np.linalg.cholesky(covariance)
    loc, factor = (mean / unit, factor) if family.noncentered else (mean, unit * factor)
    scale = np.diag(factor)
    base = {
        "loc": jnp.asarray(loc),
        "log_scale": jnp.log(jnp.asarray(scale)),
        "lower": jnp.tril(jnp.asarray(factor / scale[:, None]), -1),
    }
    return {
        "location": jnp.log(jnp.asarray(b / a)),
        "log_shape": jnp.log(jnp.asarray(a)),
        "base": base,
    }


@pytest.mark.parametrize("noncentered", FORMS)
def test_scale_mixture_is_exact_on_its_own_posterior(noncentered, key):
    """Each draw has the evidence for a weight, and the path derivative is zero."""
    target = wh.condition(Conjugate(centred=not noncentered), Y, X)
    family = ScaleMixtureFamily("v", FullRank(), noncentered).bind(LAYOUT)
    params = at_truth(family)

    def log_densities(flat):
        return jax.vmap(lambda x: target.log_density({"v": x[0], "white": x[1:]}))(flat)

    noise = family.noise(jnp.zeros(3), 50, key=key)
    estimate = jax.jit(lambda n: PathDerivative().estimate(family, params, log_densities, n))
    weights, gradient = estimate(noise)
    assert_allclose(weights, truth()[-1], rtol=1e-10)
    for leaf in jax.tree.leaves(gradient):
        assert_allclose(leaf, 0, atol=1e-9)
    described = family.describe(params)
    a, b, mean, covariance, _ = truth()
    assert_allclose(np.array([described["a"], described["b"]]), np.array([a, b]))
    assert_allclose(described["loc"], mean)
    factor = described["scale_tril"]
    assert_allclose(factor @ factor.T, covariance)
    # The two estimators agree in expectation, the implicit gradient of the gamma included.
    away = params | {"log_shape": params["log_shape"] - 0.3}
    noise = family.noise(jnp.zeros(3), 2_000, key=key)

    @jax.jit
    @jax.vmap
    def difference(noise):
        noise = jax.tree.map(lambda x: x[None], noise)
        one, other = (
            estimator.estimate(family, away, log_densities, noise)[1]
            for estimator in (PathDerivative(), ClosedFormEntropy())
        )
        return jax.tree.map(lambda a, b: a - b, one, other), one["log_shape"]

    differences, gradient = difference(noise)
    assert abs(gradient.mean()) > 10 * gradient.std() / np.sqrt(2_000)
    for leaf in jax.tree.leaves(differences):
        error = leaf.std(0) / np.sqrt(2_000) + 1e-12
        assert_allclose(leaf.mean(0) / error, 0, atol=4.5)


@pytest.mark.parametrize("noncentered", FORMS)
def test_densities_of_the_scale_mixture(noncentered, key):
    """Density against scipy, score by autodiff, entropy and draws by Monte Carlo."""
    family = ScaleMixtureFamily("v", FullRank(), noncentered).bind(LAYOUT)
    params = at_truth(family)
    a, b, mean, covariance, _ = truth()

    def log_prob(x):
        v = jnp.exp(x[0])
        own = dist.InverseGamma(a, b).log_prob(v) + x[0]
        root = jnp.sqrt(v)
        if noncentered:
            given = dist.MultivariateNormal(mean / root, covariance)
        else:
            given = dist.MultivariateNormal(mean, v * covariance)
        return own + given.log_prob(x[1:])

    noise = family.noise(jnp.zeros(3), 4_000, key=key)

    @jax.jit
    @jax.vmap
    def evaluate(n):
        x = family.transform(params, n)
        expected = jax.value_and_grad(log_prob)(x)
        return x, (family.log_prob(params, n), family.score(params, n)), expected

    x, (log_probs, scores), expected = evaluate(noise)
    assert_allclose(log_probs, expected[0], rtol=1e-9, atol=1e-9)
    assert_allclose(scores, expected[1], rtol=1e-7, atol=1e-8)
    error = log_probs.std() / np.sqrt(len(x))
    assert_allclose(family.entropy(params), -log_probs.mean(), atol=4.5 * error)
    assert stats.kstest(np.exp(x[:, 0]), stats.invgamma(a, scale=b).cdf).pvalue > 1e-4
    # Marginally a Student t of 2 a degrees of freedom.
    u = x[:, 1] * np.exp(x[:, 0] / 2) if noncentered else x[:, 1]
    t = stats.t(2 * a, mean[0], np.sqrt(b / a * covariance[0, 0]))
    assert stats.kstest(np.asarray(u), t.cdf).pvalue > 1e-4


def test_densities_of_the_centred_scale_mixture(key):
    """The same without repetition: density, score and entropy at five draws."""
    family = ScaleMixtureFamily("v", FullRank(), noncentered=False).bind(LAYOUT)
    params = at_truth(family)
    a, b, mean, covariance, _ = truth()

    def log_prob(x):
        v = jnp.exp(x[0])
        own = dist.InverseGamma(a, b).log_prob(v) + x[0]
        return own + dist.MultivariateNormal(mean, v * covariance).log_prob(x[1:])

    @jax.jit
    @jax.vmap
    def evaluate(n):
        expected = jax.value_and_grad(log_prob)(family.transform(params, n))
        return (family.log_prob(params, n), family.score(params, n)), expected

    found, expected = evaluate(family.noise(jnp.zeros(3), 5, key=key))
    assert_allclose(found[0], expected[0], rtol=1e-9)
    assert_allclose(found[1], expected[1], rtol=1e-7, atol=1e-8)
    # Of log v, and of two normal numbers whose variances have the mean logarithm of v.
    own = stats.invgamma(a, scale=b).entropy() - (np.log(b) - digamma(a))
    normal = stats.multivariate_normal(mean, covariance).entropy() + np.log(b) - digamma(a)
    assert_allclose(family.entropy(params), own + normal, rtol=1e-9)


@pytest.mark.slow
def test_bbvi_finds_the_posterior(key):
    target = wh.condition(Conjugate(), Y, X)
    engine = BBVI(family=ScaleMixtureFamily("v", FullRank()), steps=3_000, draws=500)
    posterior = wh.infer(target, engine, key=key)
    a, b, mean, covariance, evidence = truth()
    found = posterior.sample.record.parameters
    assert_allclose(np.array([found["a"], found["b"]]), np.array([a, b]), rtol=1e-3)
    assert_allclose(found["loc"], mean, atol=1e-3)
    assert_allclose(found["scale_tril"] @ found["scale_tril"].T, covariance, rtol=1e-2)
    assert_allclose(posterior.sample.record.elbo_final, evidence, atol=1e-4)


@pytest.mark.slow
def test_factors_with_a_point(key):
    """The point is the maximum over v of the evidence given v, and v's own density."""
    target = wh.condition(Conjugate(), Y, X)
    family = Factors({"v": Point()}, rest=FullRank())
    posterior = wh.infer(target, BBVI(family=family, steps=2_000, draws=300), key=key)
    found = posterior.sample.record.parameters
    a, b, *_ = truth()
    # Of log v, whose density is that of v times v.
    # The gradient by a point keeps its noise at the optimum: about 0.01 after this run.
    assert_allclose(np.exp(found["v: loc"]), b / a, rtol=0.05)
    assert np.ptp(posterior["v"]) == 0
    _, _, mean, covariance, evidence = truth()
    v = b / a
    assert_allclose(found["rest: loc"], mean / np.sqrt(v), atol=0.05)
    at_mode = a * np.log(b) - gammaln(a) - a * np.log(v) - b / v
    assert_allclose(posterior.sample.record.elbo_final, evidence + at_mode, atol=5e-3)


@pytest.mark.slow
def test_what_positions_share_is_in_one_copy(key):
    """A point's gradient is that of all draws, and none of its work is repeated."""

    class Shared(wh.Model):
        matrix: jax.Array = wh.latent(dist.Normal(0.0, 1.0), shape=(3, 3))
        z: jax.Array = wh.latent(dist.Normal(0.0, 1.0), shape=3)

        def likelihood(self):
            return dist.Normal(jnp.linalg.inv(self.matrix @ self.matrix.T + 1) @ self.z, 1.0)

    target = wh.condition(Shared(), np.arange(3.0))
    engine = BBVI(family=Factors({"matrix": Point()}), samples=7)

    def program(engine):
        def step(key):
            state = engine.init(target, key=key)
            return engine.step(target, state, jnp.int32(0), key=key)

        return jax.jit(step).lower(key).compile().as_text() or ""

    assert "f64[7,3,3]" not in program(engine)
    assert "f64[7,3,3]" in program(BBVI(samples=7))


def test_blocks_are_their_families_side_by_side(key):
    blocks, one = Blocks(2, FullRank()), FullRank()
    params = blocks.init(jnp.arange(6.0))
    params["lower"] = jr.normal(key, (2, 3, 3))
    params["log_scale"] = jr.normal(jr.fold_in(key, 1), (2, 3))
    noise = blocks.noise(jnp.zeros(6), 4, key=key)[0]
    parts = [jax.tree.map(lambda x, i=i: x[i], params) for i in range(2)]
    both = [one.transform(p, n) for p, n in zip(parts, noise)]
    assert_allclose(blocks.transform(params, noise), np.concatenate(both))
    scores = [one.score(p, n) for p, n in zip(parts, noise)]
    assert_allclose(blocks.score(params, noise), np.concatenate(scores))
    for name in ("log_prob", "entropy"):
        rest = zip(parts, noise) if name == "log_prob" else zip(parts)
        got = getattr(blocks, name)(params, *([noise] if name == "log_prob" else []))
        assert_allclose(got, sum(getattr(one, name)(*arguments) for arguments in rest))
    assert_allclose(blocks.location(params), np.arange(6))


def test_parts_of_a_factor_keep_their_places(key):
    layout = (("a", 2), ("b", 1), ("c", 3), ("d", 1))
    family = Factors({"[ac]": Point(), "d": MeanField(0.5)}, rest=FullRank()).bind(layout)
    params = family.init(jnp.arange(7.0))
    noise = jax.tree.map(lambda x: x[0], family.noise(jnp.zeros(7), 3, key=key))
    moved = family.transform(params, noise) - jnp.arange(7.0)
    assert_allclose(moved[jnp.asarray([0, 1, 3, 4, 5])], 0)
    assert_allclose([moved[2] / 0.1, moved[6] / 0.5], [noise[2][0], noise[1][0]])
    assert family.shared(layout) == (True, False, True, False)
    assert_allclose(family.score(params, noise)[jnp.asarray([0, 1, 3, 4, 5])], 0)


def test_families_are_stored_and_read():
    family = Factors({"z*": Point()}, rest=ScaleMixtureFamily("v", Blocks(2, FullRank())))
    assert from_json(to_json(family)) == family


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (ScaleMixtureFamily("scale"), "`scale` must name a latent"),
        (ScaleMixtureFamily("white"), "`scale` must name a latent of one number"),
        (Factors({"w": Point()}), "`factors` must name latents"),
        (Factors({"white": Point()}, ScaleMixtureFamily("v")), "latents other than"),
        (ScaleMixtureFamily("v", Blocks(3)), "`blocks` must divide the 2"),
    ],
)
def test_names_that_are_not_there(family, message, key):
    with pytest.raises(ValueError, match=message):
        wh.infer(wh.condition(Conjugate(), Y, X), BBVI(family=family), key=key)


def test_bad_settings():
    with pytest.raises(ValueError, match="`initial_shape`"):
        ScaleMixtureFamily("v", initial_shape=0.0)
    with pytest.raises(ValueError, match="`blocks` must be at least 1"):
        Blocks(0)
    with pytest.raises(ValueError, match="must be an instance of AbstractFamily"):
        Factors({"v": 3.0})
