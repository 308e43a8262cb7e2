"""Tempered SMC through the loop: models, paths, failures, and what it reports."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpy.testing import assert_allclose
from scipy import stats
from scipy.stats import cauchy, multivariate_normal
from smc_targets import Conjugate, OneDimension

import whence as wh
from whence.inference.smc import (
    ParticleCovariance,
    PriorPath,
    RandomWalk,
    ReferencePath,
    Residual,
    TemperedSMC,
)
from whence.inference.smc._path import choose_path
from whence.testing import Funnel, Gaussian, check_engine

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


class EightSchools(wh.Model):
    """Rubin (1981)."""

    mu: jax.Array = wh.latent(dist.Normal(0.0, 5.0))
    tau: jax.Array = wh.latent(dist.HalfCauchy(5.0))
    theta: jax.Array = wh.latent(
        lambda m: dist.Normal(m.mu, m.tau), shape=(8,), noncentered=True
    )

    def likelihood(self, sigma):
        return dist.Normal(self.theta, sigma)


def _eight_schools_truth():
    """Integrate out theta and mu in closed form, and log tau by quadrature."""
    log_tau = np.linspace(-12.0, 9.0, 4001)
    tau = np.exp(log_tau)
    logs, mean = np.empty_like(tau), np.empty_like(tau)
    for i, t in enumerate(tau):
        cov = np.diag(SIGMA**2 + t**2) + 25.0
        logs[i] = multivariate_normal(np.zeros(8), cov).logpdf(Y)
        precision = 1.0 / (SIGMA**2 + t**2)
        mean[i] = (precision @ Y) / (precision.sum() + 1.0 / 25.0)
    logs += np.log(2.0) + cauchy.logpdf(tau, 0.0, 5.0) + log_tau
    weights = np.exp(logs - logs.max())
    average = lambda f: (weights * f).sum() / weights.sum()
    evidence = np.log(weights.sum() * (log_tau[1] - log_tau[0])) + logs.max()
    return evidence, average(mean), average(log_tau), average((tau < 2.0).astype(float))


@pytest.mark.slow
def test_eight_schools_against_quadrature(key):
    target = wh.condition(EightSchools(), jnp.asarray(Y), jnp.asarray(SIGMA))
    assert choose_path(target, "auto") == PriorPath()
    posterior = wh.infer(target, TemperedSMC(particles=4096), key=key)
    log_evidence, mu, log_tau, small = _eight_schools_truth()
    assert posterior.log_evidence_error < 0.05
    off = posterior.log_evidence - log_evidence
    assert abs(off) < 4.5 * posterior.log_evidence_error
    weights = np.exp(np.asarray(posterior.log_weights[0]))
    for values, want in (
        (posterior["mu"][0], mu),
        (np.log(posterior["tau"][0]), log_tau),
        ((np.asarray(posterior["tau"][0]) < 2.0).astype(float), small),
    ):
        mean = weights @ values
        # Particles share ancestors; half of the weighted sample is a cautious ESS.
        error = np.sqrt(weights @ (values - mean) ** 2 * (weights**2).sum() * 2.0)
        assert abs(mean - want) < 4.5 * error


class Flat(wh.Model):
    """An improper prior: the posterior is proper, and there is no prior to draw from."""

    x: jax.Array = wh.latent(dist.ImproperUniform(dist.constraints.real, (), (3,)))

    def likelihood(self, offset):
        return dist.Normal(self.x + offset, jnp.asarray([0.1, 1.0, 10.0])).to_event(1)


@pytest.mark.slow
def test_improper_prior_starts_from_a_reference(key):
    target = wh.condition(Flat(), jnp.asarray([[4.0, 50.0, -3.0]]), jnp.zeros(3))
    assert choose_path(target, "auto") == ReferencePath()
    with pytest.raises(ValueError, match="`path='prior'`.*improper"):
        TemperedSMC(path="prior").validate(target)
    posterior = wh.infer(target, TemperedSMC(particles=1000), key=key)
    assert "spreading" not in posterior.diagnose()
    # The integral of the likelihood over a flat prior is 1.
    assert abs(posterior.log_evidence) < 4.5 * posterior.log_evidence_error
    assert posterior.log_evidence_error < 0.3
    weights = np.exp(np.asarray(posterior.log_weights[0]))
    mean = weights @ np.asarray(posterior["x"][0])
    error = np.array([0.1, 1.0, 10.0]) * np.sqrt((weights**2).sum() * 2.0)
    assert np.all(np.abs(mean - [4.0, 50.0, -3.0]) < 4.5 * error)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["hmc", "rwm"])
def test_conformance(kernel, key):
    # Its targets, a correlated Gaussian and a skewed one, have no prior: the reference path.
    check_engine(TemperedSMC(particles=1024, kernel=kernel), key=key)


def test_report_by_temperature_adds_up(key):
    target = Conjugate.simulate(2)
    sample = wh.infer(target, TemperedSMC(particles=500), key=key).sample
    table = vars(sample.record)
    assert np.all(np.diff(table["temperature"]) > 0)
    assert table["temperature"][-1] == 1.0
    assert_allclose(table["log_evidence_increment"].sum(), sample.log_evidence, rtol=1e-12)
    assert_allclose(table["ess"][:-1] / 500, 0.5, rtol=1e-6)
    assert np.all((table["acceptance_rate"] > 0.5) & (table["acceptance_rate"] <= 1.0))
    assert np.all(np.diff(table["unique_ancestors"]) <= 0)
    assert table["num_nonfinite_start"] == 0
    assert sample.log_weights.shape == (1, 500)
    assert_allclose(np.exp(sample.log_weights).sum(), 1.0)
    lp = jax.vmap(target.log_density)({"x": jnp.asarray(sample.positions["x"][0])})
    assert_allclose(sample.stats["lp"][0], lp, rtol=1e-10)


def test_particles_keep_the_dtype_of_the_target(key):
    target = Conjugate.simulate(2, jnp.float32)
    sample = wh.infer(target, TemperedSMC(particles=1000), key=key).sample
    assert sample.positions["x"].dtype == np.float32
    assert sample.log_weights.dtype == np.float64
    off = sample.log_evidence - target.log_evidence
    assert abs(off) < 4.5 * sample.log_evidence_error


def test_no_particle_with_a_finite_likelihood_is_a_failure(key):
    target = OneDimension(lambda x: jnp.where(x < 50.0, -jnp.inf, 0.0))
    with pytest.raises(wh.InferenceError, match="not finite"):
        wh.infer(target, TemperedSMC(particles=50, kernel="rwm"), key=key)


def test_particles_without_likelihood_are_counted(key):
    target = OneDimension(lambda x: jnp.where(x < 0.0, jnp.nan, norm.logpdf(x, 1.0, 0.3)))
    sample = wh.infer(target, TemperedSMC(particles=1000, kernel="rwm"), key=key).sample
    assert 400 < sample.record.num_nonfinite_start < 600
    assert np.all(np.exp(sample.log_weights[0])[sample.positions[0, :, 0] < 0] == 0)
    off = sample.log_evidence - target.expect(np.ones_like)[0]
    assert abs(off) < 4.5 * sample.log_evidence_error


def test_stalled_tempering_says_so(key):
    target = OneDimension(lambda x: 1e6 * norm.logpdf(x))
    # Asked to lose no particle at all, the steps are tiny and do not grow.
    engine = TemperedSMC(particles=64, ess=1.0 - 1e-12, kernel="rwm", moves=1)
    shown = r"closer than 1e-6.*steps the last inverse temperatures were \d.*\d, \d.*"
    with pytest.raises(wh.InferenceError, match=shown):
        wh.infer(target, engine, key=key)


def test_a_vague_prior_does_not_stall(key):
    target = OneDimension(lambda x: norm.logpdf(x, 0.3, 1e-3), 1e4)
    sample = wh.infer(target, TemperedSMC(particles=1000, kernel="rwm"), key=key).sample
    assert sample.record.temperature[0] < 1e-10
    off = sample.log_evidence - norm.logpdf(0.3, 0.0, 1e4)
    assert abs(off) < 4.5 * sample.log_evidence_error


def test_too_few_steps_are_refused_or_finished_by_importance_sampling(key):
    target = Conjugate.simulate(1)
    engine = TemperedSMC(particles=4000, max_steps=3)
    with pytest.raises(wh.InferenceError, match="largest number of steps"):
        wh.infer(target, engine, key=key)
    with pytest.warns(wh.InferenceWarning):
        sample = wh.infer(target, engine, key=key, throw=False).sample
    weights = np.exp(sample.log_weights[0])
    assert_allclose(weights.sum(), 1.0)
    off = sample.log_evidence - target.log_evidence
    assert abs(off) < 4.5 * sample.log_evidence_error
    mean = weights @ sample.positions["x"][0]
    error = target.sd * np.sqrt((weights**2).sum() * 2.0)
    assert np.all(np.abs(mean - target.mean) < 4.5 * error)
    plain = sample.positions["x"][0].mean(0)
    assert np.all(np.abs(plain - target.mean) > 10.0 * error)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("particles", 1),
        ("ess", 0.0),
        ("ess", 1.0),
        ("threshold", 1.5),
        ("moves", 0),
        ("max_moves", 0),
        ("max_steps", 1),
        ("kernel", "nuts"),
        ("resampling", "best"),
        ("metric", "sparse"),
        ("path", "posterior"),
    ],
)
def test_wrong_arguments_are_named_with_the_rule_and_the_value(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be .*; got .*{value}"):
        TemperedSMC(**{argument: value})


def test_a_program_holds_one_copy_of_the_model(key):
    # The first evaluation, the refresh at a new temperature and the moves are one code:
    # copies of the gradient are what compilation time is made of.
    target = OneDimension(lambda x: norm.logpdf(jax.lax.asinh(x), 1.0, 0.3))
    engine = TemperedSMC(particles=16)

    def program(key):
        state = engine.init(target, key=key)
        return engine.step(target, state, jnp.asarray(0, jnp.int32), key=key)

    assert str(jax.make_jaxpr(program)(key)).count(" asinh ") == 1


def test_parts_in_place_of_their_names(key):
    named, given = (
        wh.infer(Gaussian(2), TemperedSMC(particles=64, **parts), key=key).variables["x"]
        for parts in (
            {"kernel": "rwm", "resampling": "residual", "metric": "diag", "path": "reference"},
            {
                "kernel": RandomWalk(),
                "resampling": Residual(),
                "metric": ParticleCovariance(dense=False),
                "path": ReferencePath(),
            },
        )
    )
    np.testing.assert_array_equal(named, given)


def test_a_reference_of_ones_own(key):
    target = Conjugate.simulate(2)
    path = ReferencePath(mean=(3.0, -2.0), scale=2.0)
    sample = wh.infer(target, TemperedSMC(particles=1000, path=path), key=key).sample
    off = sample.log_evidence - target.log_evidence
    assert abs(off) < 4.5 * sample.log_evidence_error
    with pytest.raises(ValueError, match="`mean` of a `ReferencePath` must have 1 or 2.*got 3"):
        TemperedSMC(path=ReferencePath(mean=(0.0, 0.0, 0.0))).validate(target)
    with pytest.raises(ValueError, match="`scale` must be positive and finite; got -1"):
        ReferencePath(scale=-1.0)


def test_particles_of_all_temperatures_are_draws(key):
    target = Conjugate.simulate(2)
    engine = TemperedSMC(particles=500, kernel="mala", persistent=True, max_steps=30)
    sample = wh.infer(target, engine, key=key).sample
    weights = np.exp(sample.log_weights[0])
    x = sample.positions["x"][0]
    assert len(x) % 500 == 0
    assert 1 / np.sum(weights**2) > 600  # those of earlier temperatures count
    assert np.all(np.abs(weights @ x - target.mean) < 4.5 * target.sd / 500**0.5)
    off = sample.log_evidence - target.log_evidence
    assert abs(off) < 4.5 * sample.log_evidence_error
    assert 0.03 < sample.log_evidence_error < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 100}, "`chains` must divide `particles`, 2048.*; got 100"),
        ({"chains": 2048}, "`chains` must divide .*; got 2048"),
        ({"chains": 64, "moves": 3}, "`moves` must be None with `chains`.*; got 3"),
        ({"chains": 64, "persistent": True}, "`chains` must be None with `persistent=True`"),
    ],
)
def test_chains_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TemperedSMC(**options)


class Parent(wh.Model):
    tau: Any = wh.latent(dist.HalfNormal(5.0))
    theta: Any = wh.latent(lambda m: dist.Normal(0.0, m.tau), shape=(8,))

    def likelihood(self, x):
        return dist.Normal(x @ self.theta, 1.0)


def test_a_fixed_child_is_evidence_on_its_parent(key):
    """Its prior density given the parent counts, though nothing draws it: by quadrature."""
    rng = np.random.default_rng(0)
    theta = 0.5 * np.array([1.2, -0.7, 0.3, -1.5, 0.9, 0.1, -0.4, 0.8])
    x = rng.normal(size=(20, 8))
    y = x @ theta + rng.normal(size=20)
    target = wh.condition(Parent(theta=theta), y, x)
    assert target.tied == ("theta",)
    tau = np.linspace(1e-3, 12.0, 40_001)
    density = stats.halfnorm.pdf(tau, scale=5.0) * np.exp(
        stats.norm.logpdf(theta, 0, tau[:, None]).sum(1)
    )
    total = np.trapezoid(density, tau)
    mean = np.trapezoid(tau * density, tau) / total
    evidence = np.log(total) + stats.norm.logpdf(y, x @ theta, 1.0).sum()
    found = wh.infer(target, wh.TemperedSMC(particles=2000), key=key)
    assert_allclose(found.log_evidence, evidence, atol=4.5 * found.log_evidence_error)
    weights = np.exp(found.log_weights)
    sd = np.sqrt(np.trapezoid((tau - mean) ** 2 * density, tau) / total)
    error = sd * np.sqrt(np.sum(weights**2))
    assert_allclose(np.sum(weights * found["tau"]), mean, atol=6 * error)
    with pytest.raises(ValueError, match="latent `theta` is fixed"):
        wh.infer(target, wh.DataTemperedSMC(particles=100), key=key)
    with pytest.raises(ValueError, match="latent `theta` is fixed"):
        wh.sbc(target, wh.NUTS(), key=key)
    other = wh.condition(Parent(tau=2.0), y, x)
    assert other.tied == ()
    other.sample_prior(key=key)


def test_particles_that_moves_had_to_spread_are_told(key):
    engine = TemperedSMC()  # with 500 particles chance hides it now and then
    funnel = wh.infer(Funnel(5), engine, key=key)
    # It is what it says: `v` has the standard deviation 3.
    assert np.std(np.asarray(funnel.draws["v"])) < 2.5
    assert "spreading" in funnel.diagnose()
    # Moves went on at the last temperature, until they spread the particles no more.
    last = funnel.record.growth[funnel.record.temperature == 1]
    assert last[-1] <= 0.1 or len(last) >= 10
