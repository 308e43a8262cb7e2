"""Maxima against closed forms; several, flat, unbounded, kinked ones; what is said of it."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import constraints

import whence as wh
from whence.diagnostics._data import Draws
from whence.diagnostics._point import check_point
from whence.inference.point._shape import improved
from whence.testing import Gaussian

SLOW = pytest.mark.slow
Y = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0])


class Coin(wh.Model):
    """Beta and Dirichlet have bounded supports, on which the Jacobian moves the mode."""

    p: jax.Array = wh.latent(dist.Beta(2.0, 3.0))
    rate: jax.Array = wh.latent(dist.Gamma(3.0, 2.0))
    shares: jax.Array = wh.latent(dist.Dirichlet(jnp.array([2.0, 3.0, 5.0])))

    def likelihood(self):
        return dist.Bernoulli(self.p)


def _coin():
    numpyro.sample("rate", dist.Gamma(3.0, 2.0))
    numpyro.sample("shares", dist.Dirichlet(jnp.array([2.0, 3.0, 5.0])))
    numpyro.sample("y", dist.Bernoulli(numpyro.sample("p", dist.Beta(2.0, 3.0))), obs=Y)


def _density(fn, example, supports=None):
    return wh.from_log_density(jax.tree_util.Partial(fn), example, supports)


def _map(target, key, **options):
    return wh.infer(target, wh.MAP(**options), key=key)


@pytest.mark.parametrize(
    ("objective", "p", "rate"),
    [
        ("posterior", 4 / 10, 2 / 2),
        pytest.param("unconstrained", 5 / 12, 3 / 2, marks=SLOW),
        ("likelihood", 3 / 7, None),
    ],
)
def test_closed_forms(objective, p, rate, key):
    posterior = _map(wh.condition(Coin(), Y), key, objective=objective, starts=2)
    assert posterior["p"].shape == (1, 1)
    assert_allclose(posterior["p"], p, rtol=1e-6)
    assert posterior.failed == ()
    if rate is None:
        report = posterior.diagnose()
        assert not report.ok  # the likelihood does not speak of the others
        assert {"rate", "shares"} == set(report["maximum"].where)
        return
    assert_allclose(posterior["rate"], rate, rtol=1e-6)
    if objective == "posterior":
        assert_allclose(posterior["shares"][0, 0], np.array([1, 2, 4]) / 7, rtol=1e-6)
    position = jax.tree.map(lambda x: jnp.asarray(x[0, 0]), posterior.sample.positions)
    assert_allclose(posterior.stats["lp"], posterior.target.log_density(position))
    assert posterior.diagnose().ok


@SLOW
def test_numpyro_models_have_the_same_maximum(key):
    posterior = _map(wh.from_numpyro(_coin), key, starts=2)
    assert_allclose(posterior["p"], 4 / 10, rtol=1e-6)
    assert_allclose(posterior["shares"][0, 0], np.array([1, 2, 4]) / 7, rtol=1e-6)


@SLOW
def test_the_parameterisation_of_a_latent_does_not_matter(key):
    def posterior_of(noncentered):
        class Groups(wh.Model):
            scale: jax.Array = wh.latent(dist.LogNormal(0.0, 0.5))
            mean: jax.Array = wh.latent(
                lambda m: dist.Normal(0.5, m.scale), shape=3, noncentered=noncentered
            )

            def likelihood(self):
                return dist.Normal(self.mean, 0.5)

        return _map(wh.condition(Groups(), np.array([1.0, -0.5, 2.0])), key, starts=2)

    one, two = posterior_of(False), posterior_of(True)
    assert_allclose(one["mean"], two["mean"], rtol=1e-5)
    assert_allclose(one["scale"], two["scale"], rtol=1e-5)
    # Given the scale, the mode is the mean of a conjugate posterior.
    weight = 1 / (1 + 0.25 / one["scale"][0, 0] ** 2)
    mean = 0.5 + weight * (np.array([1.0, -0.5, 2.0]) - 0.5)
    assert_allclose(one["mean"][0, 0], mean, rtol=1e-5)


def test_the_best_of_several_maxima(key):
    def fn(x):
        modes = dist.Normal(jnp.array([-1.0, 1.5]), 0.2).log_prob(x["a"])
        return jax.nn.logsumexp(modes + jnp.log(jnp.array([0.3, 0.7])))

    posterior = _map(_density(fn, {"a": 0.0}), key, starts=12)
    assert_allclose(posterior["a"], 1.5, atol=1e-6)
    objectives = posterior.sample.record.objectives
    gap = np.log(0.7 / 0.3)
    low = np.isclose(objectives, objectives[0] - gap, atol=1e-6)
    assert np.all(low | np.isclose(objectives, objectives[0], atol=1e-6))
    assert 2 <= low.sum() <= 10
    finding = posterior.diagnose()["starts"]
    assert finding.severity == "note"
    assert f"{12 - low.sum()} of 12 starts" in finding.message
    assert "0.847 nats lower" in finding.message


def test_flat_directions_are_named(key):
    target = _density(
        lambda x: -((x["a"] + x["b"] - 1) ** 2) - x["c"] ** 2, dict.fromkeys("abc", 0.0)
    )
    posterior = _map(target, key, starts=2)
    finding = posterior.diagnose()["maximum"]
    assert finding.severity == "warning"
    assert set(finding.where) == {"a", "b"}
    assert_allclose(posterior["a"] + posterior["b"], 1, atol=1e-6)


@SLOW
def test_a_maximum_on_the_edge_of_a_support_is_told(key):
    """The density of Beta(1, 3) is highest at 0: an infinite position."""
    target = _density(dist.Beta(1.0, 3.0).log_prob, 0.5, constraints.unit_interval)
    report = _map(target, key, starts=2).diagnose()
    assert report["maximum"].severity == "warning"
    assert report["maximum"].where == ("x",)


class Mixture(wh.Model):
    mean: jax.Array = wh.latent(dist.Normal(0.0, 3.0).expand([2]))
    scale: jax.Array = wh.latent(dist.LogNormal(0.0, 1.0).expand([2]))

    def log_likelihood(self, y):
        return jax.nn.logsumexp(dist.Normal(self.mean, self.scale).log_prob(y[:, None]), axis=1)


@SLOW
@pytest.mark.usefixtures("standard")
def test_an_unbounded_likelihood_is_told(key):
    """One component of a normal mixture can sit on one observation and shrink to it."""
    target = wh.condition(Mixture(), np.array([-1.5, 0.2, 1.1, 1.3, 1.2]))
    with pytest.warns(wh.InferenceWarning, match="component on one data point"):
        posterior = _map(target, key, objective="likelihood", starts=8)
    assert len(posterior.failed) + len(posterior.sample.record.objectives) == 8
    assert all("unbounded" in said for said in posterior.failed)
    assert not posterior.diagnose().ok


@SLOW
@pytest.mark.usefixtures("standard")
def test_the_law_of_one_scale_cannot_be_learnt_from_one_draw(key):
    """Evidence over both parameters of an inverse gamma law rises to that of a known scale."""
    nngp = pytest.importorskip("whence.models.nngp")
    x = np.random.default_rng(0).normal(size=(12, 2))
    y = np.random.default_rng(1).normal(size=12)
    net = nngp.Serial(nngp.Dense(1.5, 0.1), nngp.Erf(), nngp.Dense())

    class Law(wh.Model):
        shape: jax.Array = wh.latent(dist.LogNormal(0.0, 1.0))
        scale: jax.Array = wh.latent(dist.LogNormal(0.0, 1.0))

        def log_likelihood(self, y, x):
            law = nngp.InverseGamma(self.shape, self.scale)
            return nngp.ScaleMixture(net, law, 0.1).log_evidence(x, y)

    target = wh.condition(Law(), y, x)
    posterior = _map(target, key, objective="likelihood", starts=3)
    known = nngp.ScaleMixture(net, nngp.PointMass(1.0), 0.1).condition(x, y)
    best = known.quadratic / known.size  # of the scale, if it is known
    limit = nngp.ScaleMixture(net, nngp.PointMass(best), 0.1).log_evidence(x, y)
    assert_allclose(posterior.stats["objective"], limit, atol=1e-3)
    assert_allclose(posterior["scale"] / posterior["shape"], best, rtol=1e-3)
    finding = posterior.diagnose()["maximum"]
    assert finding.severity == "warning"
    assert set(finding.where) == {"shape", "scale"}
    # With a prior on the shape there is a maximum.
    assert _map(target, key, starts=3).diagnose()["maximum"].severity == "ok"


def test_no_start_comes_to_rest(key):
    def fn(x):
        return jnp.sum(dist.Normal(x["m"], x["s"]).log_prob(jnp.ones(3)))

    target = _density(fn, {"m": 0.0, "s": 1.0}, {"s": constraints.positive})
    with pytest.raises(wh.InferenceError, match="unbounded"):
        _map(target, key, starts=2)


@SLOW
def test_not_converged(key):
    def rosenbrock(x):
        return -((1 - x["a"]) ** 2) - 100 * (x["b"] - x["a"] ** 2) ** 2

    target = _density(rosenbrock, {"a": 0.0, "b": 0.0})
    said = "still rising when the steps ran out.* Else allow more `steps`"
    with pytest.raises(wh.InferenceError, match=said):
        _map(target, key, starts=2, steps=3)
    posterior = _map(target, key, starts=2)
    assert_allclose([posterior["a"], posterior["b"]], 1.0, atol=1e-6)
    report = posterior.diagnose()
    # Of the curvature [[802, -400], [-400, 200]], each latent in its own unit.
    correlation = 400 / np.sqrt(802 * 200)
    expected = (1 + correlation) / (1 - correlation)
    assert_allclose(report.numbers["condition"], expected, rtol=1e-3)


@SLOW
def test_values_that_are_not_finite_are_walked_around(key):
    """NaN below 0 and minus infinity above 3: most first steps and many starts are lost."""

    def fn(x):
        inside = 10 * jnp.log(x) - 10 * x + jnp.log(jnp.sqrt(x))
        return jnp.where(x > 3, -jnp.inf, inside)

    posterior = _map(_density(fn, 0.0), key, starts=4)
    assert_allclose(posterior["x"], 1.05, rtol=1e-6)
    assert posterior.failed == ()


@SLOW
@pytest.mark.parametrize("y", [0.3, -2.0])
def test_kinks(y, key):
    """Soft thresholding: the mode under a Laplace prior of scale 1 is at 0 or off by 1."""
    target = _density(lambda x: -((x - y) ** 2) / 2 - jnp.abs(x), 0.0)
    posterior = _map(target, key, starts=4)
    truth = np.sign(y) * max(abs(y) - 1, 0)
    assert_allclose(posterior["x"], truth, atol=1e-6)
    assert ("gradient" in posterior.diagnose()) == (truth == 0)


@SLOW
def test_float32(key):
    target = _density(
        lambda x: jnp.sum(dist.Gamma(jnp.float32(3), jnp.float32(2)).log_prob(x)) - 1000,
        np.ones(3, np.float32),
        constraints.positive,
    )
    posterior = _map(target, key, starts=2)
    assert posterior["x"].dtype == np.float32
    assert_allclose(posterior["x"], 1.0, rtol=2e-2)  # the density is known to 6e-5 nats
    assert posterior.failed == ()


def test_units_and_precision_do_not_matter(key):
    """In dollars, in metres of a micron, and known to one part in 300,000, in float32."""
    mean, sd = np.array([3e5, 2e-6, 3e4]), np.array([1e4, 1e-6, 0.1])

    def fn(x):
        z = (x - mean.astype(np.float32)) / sd.astype(np.float32)
        return -jnp.sum(z**2) / 2 - np.float32(600)

    target = _density(fn, np.zeros(3, np.float32))
    posterior = _map(target, key, starts=3, objective="unconstrained", draws=1_000)
    z = (posterior["x"][0].astype(float) - mean) / sd
    assert_allclose(z.mean(0), 0, atol=0.15)
    assert_allclose(z.std(0), 1, atol=0.1)
    assert posterior.failed == ()
    report = posterior.diagnose()
    assert report["maximum"].severity == report["starts"].severity == "ok"
    evidence = 1.5 * np.log(2 * np.pi) + np.log(sd).sum() - 600
    assert_allclose(np.mean(posterior.record.log_weights_is), evidence, atol=0.01)


@SLOW
def test_many_latents_are_not_looked_at_closely(key):
    curvature = np.geomspace(1, 1e3, 600)
    target = _density(lambda x: -jnp.sum(curvature * (x - 1) ** 2) / 2, np.zeros(600))
    posterior = _map(target, key, starts=2)
    assert_allclose(posterior["x"], 1.0, atol=1e-4)
    assert "not looked at" in posterior.diagnose()["maximum"].message


@SLOW
def test_files_keep_the_verdict(key, tmp_path):
    posterior = _map(wh.condition(Coin(), Y), key, starts=2)
    posterior.save(tmp_path / "point.nc")
    again = wh.load(tmp_path / "point.nc")
    assert str(again.diagnose()) == str(posterior.diagnose())
    assert "no uncertainty" in again.diagnose()["point"].message


@SLOW
def test_laplace_refuses_what_is_no_maximum(key):
    target = _density(lambda x: -((x["a"] + x["b"]) ** 2) * 1.0, {"a": 0.0, "b": 0.0})
    with pytest.raises(wh.InferenceError, match="not negative definite"):
        _map(target, key, objective="unconstrained", draws=10, starts=2)


WRONG = {
    "starts. must be at least 1": lambda t, k: wh.MAP(starts=0),
    "draws. must be at least 0": lambda t, k: wh.MAP(draws=-1),
    "tolerance. must be positive": lambda t, k: wh.MAP(tolerance=0.0),
    "unconstrained space": lambda t, k: wh.MAP(draws=10),
    "must be one of 'posterior', 'likelihood'": lambda t, k: _map(t, k, objective="evidence"),
    "prior and likelihood apart": lambda t, k: _map(t, k, objective="likelihood"),
    "log-Jacobian": lambda t, k: _map(Gaussian(2), k),
    "at most|up to 500": lambda t, k: _map(
        _density(lambda x: -jnp.sum(x**2), np.zeros(501)),
        k,
        objective="unconstrained",
        draws=10,
    ),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input(words, key):
    target = _density(lambda x: -(x**2), 0.0)
    with pytest.raises(ValueError, match=words):
        WRONG[words](target, jr.fold_in(key, 0))


def test_a_scale_that_goes_to_zero_is_told_by_name(key):
    class Hierarchy(wh.Model):
        tau: Any = wh.latent(dist.HalfNormal(5.0))
        theta: Any = wh.latent(lambda m: dist.Normal(0.0, m.tau), shape=(4,))

        def likelihood(self):
            return dist.Normal(self.theta, 10.0)

    target = wh.condition(Hierarchy(), np.array([28.0, 8.0, -3.0, 7.0]))
    with pytest.raises(wh.InferenceError, match="scale goes to zero.* had taken `tau` to "):
        wh.infer(target, wh.MAP(starts=2, steps=200), key=key)


def test_what_is_flat_in_a_simplex_is_not_given_an_entry(key):
    class Shares(wh.Model):
        w: Any = wh.latent(dist.Dirichlet(jnp.ones(3)))

        def likelihood(self):
            return dist.Categorical(self.w)

    target = wh.condition(Shares(), np.array([0] * 6 + [1] * 4))  # nobody chose the third
    posterior = wh.infer(target, wh.MAP(starts=2), key=key)
    assert_allclose(posterior["w"][0, 0], [0.6, 0.4, 0.0], atol=1e-5)
    assert posterior.diagnose()["maximum"].where == ("w",)


def test_newton_steps_go_nowhere_without_a_hessian():
    """As at a point so near to a singularity that second derivatives overflow."""
    objective = lambda x: -((x[0] - 1.0) ** 2) - jnp.abs(x[1]) ** 1.5
    point = jnp.zeros(2)
    assert not np.isfinite(jax.hessian(objective)(point)).all()
    assert_allclose(jax.jit(lambda x: improved(objective, x))(point), point)


def test_starts_that_ended_nowhere_are_told():
    none = (None, None, None, None)
    draws = Draws({"x": np.zeros((1, 1))}, {}, {"x": np.zeros((1, 1))})
    found, _ = check_point(
        np.array([1.0, np.nan]), np.array([True, False]), none, draws, alone=True
    )
    said = {finding.code: finding.message for finding in found}
    assert said["starts"].endswith("the others ended where it is not finite")
    broken = (np.full(1, np.nan), np.full((1, 1), np.nan), np.zeros(1), np.full(1, np.nan))
    found, _ = check_point(np.ones(1), np.array([True]), broken, draws, alone=True)
    assert next(f for f in found if f.code == "maximum").where == ("x",)
