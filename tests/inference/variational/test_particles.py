"""SVGD, Laplace, Pathfinder and repaired draws against closed forms and blackjax."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from blackjax.vi import svgd
from numpy.testing import assert_allclose
from scipy.special import gammaln

import whence as wh
from whence.diagnostics._data import Draws
from whence.diagnostics._records import Optimum
from whence.inference.variational._laplace import log_mean_weight
from whence.inference.variational._pathfinder import Pathfinder
from whence.inference.variational._svgd import SteinParticles, stein_direction
from whence.testing import Gaussian, LogGamma


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard: blackjax and the closed forms here mix ranks."""


def test_coin_sampling_has_exact_gaussian_moments(key):
    """With the linear kernel, and nothing to tune."""
    target = Gaussian(2, condition_number=4.0, correlated=True)
    engine = wh.SVGD(particles=50, steps=5_000, kernel="linear")
    posterior = wh.infer(target, engine, key=key)
    x = posterior["x"][0]
    assert_allclose(x.mean(0), target.mean, atol=1e-3)
    assert_allclose(np.cov(x.T, ddof=0), target.covariance, atol=1e-3)
    report = posterior.diagnose()
    assert report["shift"].severity == report["spread"].severity == "ok"
    assert_allclose(posterior.record.inflation, 1, atol=1e-2)


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_it_is_what_blackjax_does(kernel, key):
    """Twenty updates of the same particles, in our units, with optax's coin betting."""
    target = Gaussian(2, condition_number=4.0, correlated=True)
    engine = wh.SVGD(particles=15, steps=20, kernel=kernel)
    coin = optax.contrib.cocob(1.0, alpha=0.0, eps=1e-10)
    state = engine.init(target, key=key)
    outer = lambda z: state.centre + state.units * z
    start = (state.particles - state.centre) / state.units
    gradient = jax.grad(lambda z: target.log_density(outer(z)))
    function = svgd.rbf_kernel if kernel == "rbf" else lambda x, y: x @ y + 1
    move = svgd.build_kernel(coin)

    def own(state, index):
        return engine.step(target, state, index, key=key)[0], None

    def theirs(carry, _):
        particles, optimizer = carry
        known = svgd.median_heuristic({}, particles) if kernel == "rbf" else {}
        new = move(svgd.SVGDState(particles, known, optimizer), gradient, function)
        return (new.particles, new.opt_state), None

    found = jax.jit(lambda s: jax.lax.scan(own, s, jnp.arange(20, dtype=jnp.int32))[0])(state)
    begin = start, coin.init(start)
    (exact, _), _ = jax.jit(lambda s: jax.lax.scan(theirs, s, None, length=20))(begin)
    assert_allclose(found.particles, outer(exact), rtol=1e-10, atol=1e-10)
    assert np.abs(exact - start).max() > 0.1
    assert np.abs(state.units - 1).max() > 0.1


def test_direction_of_two_particles():
    """By hand: weighted gradients, and apart."""
    x, g = jnp.asarray([[0.0], [2.0]]), jnp.asarray([[1.0], [-3.0]])
    width = 4 / np.log(2)
    k = np.exp(-4 / width)
    exact = [(1 - 3 * k - 2 / width * 2 * k) / 2, (k - 3 + 2 / width * 2 * k) / 2]
    assert_allclose(stein_direction(x, g, "rbf")[:, 0], exact)
    assert_allclose(stein_direction(x, g, "linear")[:, 0], [(1 - 3) / 2, (1 - 15) / 2 + 2])


def test_few_particles_are_said_to_be_narrow(key):
    engine = wh.SVGD(particles=10, steps=1_000, update=optax.adam(0.1))
    posterior = wh.infer(Gaussian(20), engine, key=key)
    spread = posterior.diagnose()["spread"]
    assert spread.severity == "warning"
    assert_allclose(spread.value, posterior["x"][0].var(0).min(), rtol=0.2)


@pytest.mark.parametrize(
    ("mean", "scale", "code", "words"),
    [
        (3e4, 1.0, "drift", "the density rises the same way for all of them"),
        (0.0, 1e-4, "spread", "of the target's"),
    ],
)
def test_particles_that_have_not_arrived_are_told(mean, scale, code, words, key):
    """From starts around 0 with a size of 1: far away, or far too wide."""
    density = lambda x: -(((x - mean) / scale) ** 2) / 2
    target = wh.from_log_density(lambda draw: density(draw["x"]), {"x": 0.0})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        starts = [{"x": x} for x in np.linspace(-2.0, 1.9, 20)]
        engine = wh.SVGD(particles=20, steps=50, update=optax.adam(0.1))
        posterior = wh.infer(target, engine, key=key, start=starts)
    assert any("away from where" in str(w.message) for w in said) == (code == "drift")
    finding = posterior.diagnose()[code]
    assert finding.is_problem
    assert words in finding.message
    x, record = posterior["x"].ravel(), posterior.sample.record
    gradients = (mean - x) / scale**2
    assert_allclose(record.drift, abs(gradients.mean()) / gradients.std(), rtol=1e-3)
    assert_allclose(record.inflation, x.var() / scale**2, rtol=1e-3)


def test_particles_arrive_in_any_unit_and_from_tails(key):
    """In dollars and in microns; a heavy tail, where the density is flat far away."""
    mean, sd = np.array([3e4, 2e-6]), np.array([1e3, 1e-6])

    def density(x):
        heavy = -3 * jnp.log1p((x["t"] - 500.0) ** 2 / 5)  # Student's t with 5 degrees
        return heavy - jnp.sum(((x["x"] - mean) / sd) ** 2) / 2

    target = wh.from_log_density(density, {"x": jnp.zeros(2), "t": jnp.zeros(())})
    with warnings.catch_warnings():
        warnings.simplefilter("error", wh.InferenceWarning)
        posterior = wh.infer(target, wh.SVGD(), key=key)
    z = np.column_stack([(posterior["x"][0] - mean) / sd, posterior["t"][0] - 500.0])
    assert_allclose(z.mean(0), 0, atol=0.1)
    assert_allclose(z[:, :2].std(0), 1, atol=0.15)
    assert_allclose(np.quantile(z[:, 2], [0.25, 0.75]), [-0.727, 0.727], atol=0.15)


def test_particles_outside_of_the_support_are_told(key):
    """A support that the model does not declare, which one step that is too long leaves."""
    density = lambda draw: jnp.where(draw["x"] > -0.5, -(draw["x"] ** 2) / 2, jnp.nan)
    target = wh.from_log_density(density, {"x": 0.0})
    engine = wh.SVGD(particles=20, steps=1, update=optax.sgd(100.0))
    starts = [{"x": x} for x in np.linspace(0.5, 2.0, 20)]
    with pytest.warns(wh.InferenceWarning, match="away from where the posterior is"):
        posterior = wh.infer(target, engine, key=key, start=starts)
    finding = posterior.diagnose()["outside"]
    assert finding.severity == "error"
    assert finding.value == np.sum(posterior["x"] <= -0.5) > 0
    # Some that are thrown out for a while are no end of the run: an edge far out.
    inside = lambda x: jnp.where(jnp.abs(x) < 3, -(x**2) / 2, jnp.nan)
    posterior = wh.infer(wh.from_log_density(inside, jnp.zeros(())), wh.SVGD(), key=key)
    assert posterior.sample.record.outside == 0
    assert_allclose(posterior["x"].std(), 0.986, atol=0.05)


def test_particles_do_not_begin_at_modes_without_weight(key):
    """Of two modes one has a weight of e^-30, to which half of the starts lead."""

    def density(x):
        z = (x + jnp.asarray([1.0, -1.0])) / 0.1
        return jax.nn.logsumexp(-(z**2) / 2 - jnp.asarray([0.0, 30.0]))

    target = wh.from_log_density(density, jnp.zeros(()))
    alone = jax.jit(lambda key: Pathfinder().path(target, key=key).centre)
    assert {float(np.sign(alone(k)[0])) for k in jax.random.split(key, 8)} == {-1.0, 1.0}
    particles = jax.jit(lambda key: wh.SVGD(particles=40).init(target, key=key).particles)
    for each in jax.random.split(key, 3):
        assert_allclose(particles(each), -1.0, atol=0.5)


def test_modes_that_are_left_out_or_not_weighed_are_told():
    """Each verdict by numbers alone: of particles with a gap, and of a second maximum."""
    rng = np.random.default_rng(0)
    stein = SteinParticles(np.ones(8), np.ones(1))
    for shift, words in ((0.0, []), (15.0, ["apart"])):
        x = rng.normal(size=100) + shift * (np.arange(100) % 2)
        findings, _ = stein.judge(Draws({"x": x[None]}, {}), "particles")
        assert [f.code for f in findings if f.severity != "ok"] == words
    draws = Draws({"x": rng.normal(size=(1, 100))}, {})
    for below, words in ((1.4, ["modes"]), (40.0, [])):
        found = Optimum(np.array([0.0, 0.0, -below]), np.ones(3, bool))
        for method, expected in (("independent", words), ("point", [])):
            findings, _ = found.judge(draws, method)
            assert [f.code for f in findings if f.severity == "warning"] == expected


def test_laplace_on_a_gaussian_and_off_one(key):
    target = Gaussian(3, condition_number=10.0, correlated=True)
    posterior = wh.infer(target, wh.Laplace(starts=2), key=key)
    x = posterior["x"][0]
    assert_allclose(x.mean(0), target.mean, atol=4.5 / np.sqrt(4_000))
    assert_allclose(np.cov(x.T), target.covariance, atol=0.1)
    assert_allclose(posterior.log_evidence, 0, atol=1e-8)
    assert posterior.log_evidence_error < 1e-6
    assert posterior.diagnose()["khat"].severity == "ok"
    # Of the logarithm of a gamma variable: mode log a, curvature a, and a heavy left tail.
    skewed = wh.infer(LogGamma((20.0,)), wh.Laplace(starts=2), key=key)
    x = skewed["x"][0, :, 0]
    assert_allclose(x.mean(), np.log(20), atol=4.5 * 20**-0.5 / np.sqrt(4_000))
    plain = np.log(20) * 20 - 20 - gammaln(20) + 0.5 * np.log(2 * np.pi / 20)
    assert abs(plain) > 3e-3  # by mode and curvature alone; the ratios know better
    assert_allclose(skewed.log_evidence, 0, atol=4.5 * skewed.log_evidence_error)
    assert skewed.log_evidence_error < 0.01


def test_evidence_by_weights_and_its_error():
    """Of equal weights exactly; of a lognormal's the delta method, with ten thousand."""
    assert_allclose(log_mean_weight(np.full((2, 50), 1.3)), (1.3, 0.0), atol=1e-12)
    weights = 0.3 * np.random.default_rng(0).normal(size=10_000) + 2.0
    found, error = log_mean_weight(weights)
    assert_allclose(error, np.sqrt(np.expm1(0.09) / 10_000), rtol=0.1)
    assert_allclose(found, 2.045, atol=4.5 * error)


def test_pathfinder(key):
    target = Gaussian(3, condition_number=10.0, correlated=True)
    posterior = wh.infer(target, wh.Pathfinder(draws=500), key=key)
    assert posterior.log_weights.shape == (1, 2_000)
    weights = np.exp(posterior.log_weights[0])
    x = posterior["x"][0]
    ess = 1 / (weights**2).sum()
    assert ess > 500
    sd = np.sqrt(np.diag(target.covariance))
    assert_allclose((weights @ x - target.mean) / sd, 0, atol=4.5 / np.sqrt(ess))
    assert_allclose(posterior.log_evidence, 0, atol=4.5 * posterior.log_evidence_error + 0.01)
    assert posterior.resample(100, key=key).num_draws == 100
    # In other units, far from where paths begin.
    mean, sd = np.array([3e7, 2e-6]), np.array([1e6, 1e-6])
    units = wh.from_log_density(lambda x: -jnp.sum(((x - mean) / sd) ** 2) / 2, jnp.zeros(2))
    alone = wh.infer(units, wh.Pathfinder(paths=1, draws=200), key=key)
    assert alone.log_weights is None
    z = (alone["x"][0] - mean) / sd
    assert z.shape == (200, 2)
    assert_allclose(z.mean(0), 0, atol=4.5 / np.sqrt(200))
    assert_allclose(z.std(0), 1, atol=4.5 / np.sqrt(400))


def test_repaired_draws(key):
    """A mean field that is too narrow by a known factor, mended by its importance ratios."""

    def log_density(x):  # standard deviations of 1, a correlation of 0.4
        a, b = x["a"], x["b"]
        return -0.5 * (a**2 - 0.8 * a * b + b**2) / 0.84

    target = wh.from_log_density(log_density, {"a": jnp.zeros(()), "b": jnp.zeros(())})
    posterior = wh.infer(target, wh.BBVI(draws=20_000, checked=15_000), key=key)
    repaired = posterior.resample(10_000, key=key, importance=True)
    moments = lambda p: np.cov(p["a"][0], p["b"][0])
    assert_allclose(moments(posterior), np.diag([0.84, 0.84]), atol=0.05)
    assert_allclose(moments(repaired), np.array([[1, 0.4], [0.4, 1]]), atol=0.07)
    assert repaired.log_weights is None
    assert repaired.record is None
    with pytest.raises(ValueError, match="this posterior has none"):
        repaired.resample(10, key=key, importance=True)


def test_bad_settings():
    with pytest.raises(ValueError, match="`update` must be 'coin' or an optax transform"):
        wh.SVGD(update="adam")
    with pytest.raises(ValueError, match="`particles` must be at least 2; got 1"):
        wh.SVGD(particles=1)
    with pytest.raises(ValueError, match="`kernel` must be one of 'rbf', 'linear'"):
        wh.SVGD(kernel="imq")
    with pytest.raises(ValueError, match="`paths` must be at least 1"):
        wh.Pathfinder(paths=0)
    with pytest.raises(ValueError, match="`draws` must be at least 1; got 0"):
        wh.Laplace(draws=0)
