"""Flows, low rank, gamma: densities and forces against autodiff, RSVI against trigamma."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.special import gammaln, polygamma

import whence as wh
from whence.inference.variational import (
    ELBO,
    Autoregressive,
    ClosedFormEntropy,
    Coupling,
    Flow,
    Gamma,
    LowRank,
    MeanField,
    PathDerivative,
    Planar,
    Radial,
    RejectionSampling,
)

LAYERS = [Planar(), Radial(), Coupling(), Coupling("spline"), Autoregressive()]
FLOWS = [Flow(layer, depth=2) for layer in LAYERS]


def moved(params, key):
    """Parameters with noise of its own on each leaf."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jr.split(key, len(leaves))
    noisy = [p + 0.4 * jr.normal(k, p.shape) for p, k in zip(leaves, keys)]
    return jax.tree.unflatten(treedef, noisy)


def somewhere(family, key, dim=3):
    """A bound family with parameters away from where they begin, and noise."""
    family = family.bind((("x", dim),))
    params = family.init(jr.normal(key, (dim,)))
    params = moved(params, key)
    return family, params, family.noise(jnp.zeros(dim), 2, key=jr.fold_in(key, 1))[0]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_log_determinants_of_layers(layer, key):
    params = moved(layer.init(jnp.zeros(3), key=key), key)
    x = jr.normal(key, (3,))

    @jax.jit
    def evaluate(x):
        return layer.apply(params, x)[1], jax.jacfwd(lambda x: layer.apply(params, x)[0])(x)

    log_det, jacobian = evaluate(x)
    assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-9)
    assert abs(log_det) > 0.01


@pytest.mark.parametrize("family", FLOWS, ids=lambda f: str(f.layer))
def test_recursion_is_sticking_the_landing(family, key):
    """The force carried along is the gradient of the density that autodiff has."""
    family, params, noise = somewhere(family, key)

    @jax.jit
    def evaluate(noise):
        inverse = jnp.linalg.inv(jax.jacfwd(lambda n: family.transform(params, n))(noise))
        by_noise = jax.grad(lambda n: family.log_prob(params, n))(noise)
        return family.score(params, noise), by_noise @ inverse, inverse

    score, exact, inverse = evaluate(noise)
    assert_allclose(score, exact, rtol=1e-10, atol=1e-10)
    base = stats.norm.logpdf(noise).sum() + np.linalg.slogdet(inverse)[1]
    assert_allclose(family.log_prob(params, noise), base, rtol=1e-9)


def test_planar_layers_can_be_inverted(key):
    """Whatever the parameters: the published constraint, u w > -1."""
    layer = Planar()
    params = {"u": jnp.asarray([-8.0, 3.0]), "w": jnp.asarray([2.0, 1.0]), "b": jnp.zeros(())}
    x = jnp.linspace(-3, 3, 400)[:, None] * params["w"][None]
    y, log_det = jax.vmap(lambda x: layer.apply(params, x))(x)
    assert (np.diff(y @ params["w"]) > 0).all()
    assert np.isfinite(log_det).all()
    # By hand, at the origin: u' = u + (log(1 + e^p) - 1 - p) w / |w|^2 with p = u w = -13.
    shift = np.log1p(np.exp(-13.0)) - 1 + 13
    u = np.array([-8.0, 3.0]) + shift * np.array([2.0, 1.0]) / 5
    origin = layer.apply(params, jnp.zeros(2))[1]
    assert_allclose(origin, np.log1p(u @ np.array([2.0, 1.0])), rtol=1e-6)
    # With u w = 1.3 it becomes log(1 + e^1.3) - 1, and the determinant log(1 + e^1.3).
    params["u"] = jnp.asarray([0.5, 0.3])
    origin = layer.apply(params, jnp.zeros(2))[1]
    assert_allclose(origin, np.log(np.log1p(np.exp(1.3))), rtol=1e-9)


def test_radial_layer_by_hand():
    """Rezende and Mohamed, equation 14, with a = 2 and b = 1 at a distance of 5."""
    inverse = lambda x: jnp.log(jnp.expm1(jnp.asarray(x)))
    params = {"centre": jnp.asarray([1.0, -1.0]), "a": inverse(2.0), "b": inverse(3.0)}
    y, log_det = Radial().apply(params, jnp.asarray([4.0, 3.0]))
    assert_allclose(y, np.array([4, 3]) + np.array([3, 4]) / 7)
    assert_allclose(log_det, np.log(1 + 1 / 7) + np.log(1 + 1 / 7 - 5 / 49))


def test_flow_has_no_variance_where_it_is_the_target(key):
    family = Flow(Radial(), depth=2).bind((("x", 2),))
    params = family.init(jnp.asarray([1.0, -2.0])) | {"log_scale": jnp.asarray([0.5, -1.0])}
    scale = jnp.exp(params["log_scale"])
    target = lambda x: -0.5 * jnp.sum(((x - params["loc"][None]) / scale[None]) ** 2, axis=1)
    noise = family.noise(jnp.zeros(2), 5, key=key)
    weights, gradient = PathDerivative().estimate(family, params, target, noise)
    assert_allclose(weights, np.log(2 * np.pi) + 0.5 - 1.0, rtol=1e-9)
    for leaf in jax.tree.leaves(gradient):
        assert_allclose(leaf, 0, atol=1e-9)


def test_low_rank_is_its_dense_gaussian(key):
    family, params, noise = somewhere(LowRank(2), key, dim=4)
    scale = np.exp(params["log_scale"])
    columns = family.describe(params)["columns"]
    dense = np.diag(scale**2) + columns @ columns.T
    normal = stats.multivariate_normal(params["loc"], dense)
    x = family.transform(params, noise)
    assert_allclose(family.log_prob(params, noise), normal.logpdf(x), rtol=1e-9)
    exact = -np.linalg.solve(dense, x - params["loc"])
    assert_allclose(family.score(params, noise), exact, rtol=1e-8)
    assert_allclose(family.entropy(params), normal.entropy(), rtol=1e-9)
    draws = jax.vmap(lambda n: family.transform(params, n))
    x = draws(family.noise(jnp.zeros(4), 20_000, key=key))
    error = np.sqrt((np.outer(np.diag(dense), np.diag(dense)) + dense**2) / 20_000)
    assert_allclose((np.cov(x.T) - dense) / error, 0, atol=4.5)


def test_softplus_scales_are_the_same_family(key):
    """A step is one of the inverse softplus of a scale, whatever its size."""
    family, plain = MeanField(scale="softplus"), MeanField()
    scale = np.array([1e-7, 0.1, 1.0, 30.0])
    params = plain.init(jnp.zeros(4)) | {"log_scale": jnp.log(jnp.asarray(scale))}
    step = plain.no_step(params) | {"log_scale": jnp.full(4, 0.3)}
    moved = np.exp(family.move(params, step)["log_scale"])
    raw = scale + np.log(-np.expm1(-scale)) + 0.3
    assert_allclose(moved, np.logaddexp(0, raw), rtol=1e-7)
    assert_allclose(family.move(params, family.no_step(params))["log_scale"], np.log(scale))


@pytest.mark.parametrize(("shape", "boost"), [(2.0, 0), (1.0, 1), (0.5, 5)])
def test_rejection_sampling_gradient(shape, boost, key):
    """By shape a, of E log z for z ~ Gamma(a, 1): trigamma(a); and of E z: 1."""
    family = Gamma(boost=boost).bind((("z", 1),))
    number = 100_000
    # The location is the logarithm of the mean, so of a rate of 1 it is log a, too.
    params = {"location": jnp.log(jnp.full(1, shape)), "log_shape": jnp.log(jnp.full(1, shape))}
    noise = family.noise(jnp.zeros(1), number, key=key)

    @jax.jit
    def by_shape(noise):
        found = []
        for function in (lambda u: u[:, 0], lambda u: jnp.exp(u[:, 0])):

            def one(noise, function=function):
                pair = jax.tree.map(lambda x: jnp.stack([x[0], x[1]]), noise)
                estimate = RejectionSampling().estimate(family, params, function, pair)[1]
                entropy = jax.grad(lambda s: family.entropy(family.move(params, s)))
                none = entropy(family.no_step(params))
                step = jax.tree.map(lambda a, b: a - b, estimate, none)
                return (step["location"] + step["log_shape"])[0] / shape

            pairs = jax.tree.map(lambda x: x.reshape(number // 2, 2, *x.shape[1:]), noise)
            found.append(jax.vmap(one)(pairs))
        return found

    for found, exact in zip(by_shape(noise), (polygamma(1, shape), 1.0)):
        error = found.std() / np.sqrt(len(found))
        assert_allclose(found.mean(), exact, atol=4.5 * error)
        assert error < 0.05 * exact


def test_more_boosts_have_less_variance(key):
    """Naesseth and others (2017), figure 2."""
    spread = []
    for boost in (0, 1, 4):
        family = Gamma(boost=boost)
        params = {"location": jnp.zeros(1), "log_shape": jnp.zeros(1)}

        def one(key, family=family, params=params):
            noise = family.noise(jnp.zeros(1), 2, key=key)
            target = lambda u: u[:, 0]
            return RejectionSampling().estimate(family, params, target, noise)[1]["log_shape"]

        spread.append(float(jax.jit(jax.vmap(one))(jr.split(key, 5_000)).std()))
    assert spread[0] > 2 * spread[1] > 2 * spread[2]


class Poisson(wh.Model):
    """Counts with a gamma prior of their rate: the posterior is a gamma distribution."""

    rate: jax.Array = wh.latent(dist.Gamma(2.0, 0.5))

    def likelihood(self):
        return dist.Poisson(self.rate)


def test_gamma_is_exact_on_a_conjugate_model(key):
    y = np.array([3, 0, 4, 2, 2])
    target = wh.condition(Poisson(), y)
    a, b = 2.0 + y.sum(), 0.5 + len(y)
    evidence = 2 * np.log(0.5) - gammaln(2) - gammaln(y + 1).sum() + gammaln(a) - a * np.log(b)
    family = Gamma().bind((("rate", 1),))
    params = {"location": jnp.log(jnp.full(1, a / b)), "log_shape": jnp.log(jnp.full(1, a))}
    noise = family.noise(jnp.zeros(1), 6, key=key)
    density = lambda u: jax.vmap(lambda x: target.log_density({"rate": x[0]}))(u)
    estimate = jax.jit(lambda n: PathDerivative().estimate(family, params, density, n))
    weights, gradient = estimate(noise)
    assert_allclose(weights, evidence, rtol=1e-9)
    for leaf in jax.tree.leaves(gradient):
        assert_allclose(leaf, 0, atol=1e-9)
    described = family.describe(params)
    assert_allclose([described["shape"][0], described["rate"][0]], [a, b])
    log_prob = stats.gamma(a, scale=1 / b).logpdf
    u = np.array(jax.vmap(lambda n: family.transform(params, n))(noise))[:, 0]
    own = jax.vmap(lambda n: family.log_prob(params, n))(noise)
    assert_allclose(own, log_prob(np.exp(u)) + u, rtol=1e-9)
    # Both ways through the sampler and the closed entropy agree in expectation.
    away = params | {"log_shape": params["log_shape"] - 0.4}

    @jax.jit
    @jax.vmap
    def both(key):
        noise = family.noise(jnp.zeros(1), 4, key=key)
        estimators = ClosedFormEntropy(), RejectionSampling(), PathDerivative()
        found = [e.estimate(family, away, density, noise, ELBO())[1] for e in estimators]
        return jnp.stack([f["log_shape"][0] for f in found])

    found = both(jr.split(key, 4_000))
    error = found.std(0) / np.sqrt(4_000)
    assert_allclose(
        (found.mean(0) - found[:, 2].mean()) / np.hypot(error, error[2]), 0, atol=4.5
    )
    assert abs(found[:, 2].mean()) > 10 * error[2]


@pytest.mark.slow
def test_flows_bend(key):
    """On a curved density a flow has a tighter bound than the best Gaussian."""

    def curved(x):
        return -0.5 * (x["a"] ** 2 + ((x["b"] - x["a"] ** 2) / 0.5) ** 2)

    target = wh.from_log_density(curved, {"a": jnp.zeros(()), "b": jnp.zeros(())})
    evidence = np.log(2 * np.pi * 0.5)
    bounds = {}
    families = {"full": wh.FullRank(), "coupling": Flow(Coupling()), "planar": Flow(Planar())}
    for name, family in families.items():
        posterior = wh.infer(target, wh.BBVI(family=family), key=key)
        bounds[name] = posterior.record.elbo_final
    assert bounds["full"] < evidence - 0.4
    assert evidence - 0.05 < bounds["coupling"] < evidence + 0.02
    assert bounds["planar"] > bounds["full"] + 0.1


def test_bad_layers():
    with pytest.raises(ValueError, match="`transform` must be one of 'affine', 'spline'"):
        Coupling("cubic")
    with pytest.raises(ValueError, match="Coupling needs at least 2 latents.*got 1"):
        Flow(Coupling()).bind((("x", 1),))
    with pytest.raises(ValueError, match="`depth` must be at least 1; got 0"):
        Flow(depth=0)
    with pytest.raises(ValueError, match="`layer` must be an instance of AbstractLayer"):
        Flow("planar")
    with pytest.raises(ValueError, match="`rank` must be at least 1; got 0"):
        LowRank(0)
