"""Particle marginal Metropolis-Hastings and SMC squared against quadrature."""

import functools

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from hidden_models import LEVEL_Y, Level, level_posterior, mean_path
from numpy.testing import assert_allclose

import whence as wh
from whence.diagnostics import mcse
from whence.testing import Gaussian

Y = LEVEL_Y


@functools.cache
def _truth():
    return level_posterior(Y)


@functools.cache
def _target():
    return wh.condition(Level(exact=False), Y)


def test_chains_with_few_particles_have_the_exact_posterior(key):
    """15 particles estimate the log likelihood to about 1: the posterior has no error of it."""
    engine = wh.ParticleMH(particles=15, chains=8, warmup=500, draws=4_000)
    posterior = wh.infer(_target(), engine, key=key)
    _, means = _truth()
    for name, truth in zip("sr", means):
        found = mcse(posterior[name])
        assert abs(posterior[name].mean() - truth) < 4 * found.mean
        assert found.mean < 0.05
    path = posterior["states"].reshape(-1, 8)
    error = np.array([float(mcse(posterior["states"][..., t]).mean) for t in range(8)])
    assert np.all(np.abs(path.mean(0) - mean_path(Y)) < 4.5 * error)
    assert np.median(posterior.stats["log_evidence_error"]) > 0.3  # the filter is a poor one


class Around(wh.StateSpaceModel):
    """A state around an unknown mean, in any unit."""

    unit: jax.Array
    mean: jax.Array = wh.latent(lambda m: dist.Normal(0.0, 10 * m.unit))

    def initial(self):
        return dist.Normal(self.mean, self.unit)

    def transition(self, x, t):
        return dist.Normal(self.mean + 0.8 * (x - self.mean), 0.5 * self.unit)

    def emission(self, x, t):
        return dist.Normal(x, 0.7 * self.unit)


@pytest.mark.parametrize(
    ("name", "unit"), [("ParticleMH", 1e6), ("ParticleMH", 1e-6), ("ParticleGibbs", 1e-6)]
)
def test_chains_arrive_in_any_unit(name, unit, key):
    y = np.array([9.0, 7.5, 8.1, 6.8, 8.4])
    lag = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    cov = np.empty((5, 5))
    variance = 1.0
    for t in range(5):
        cov[t, t:] = cov[t:, t] = variance * 0.8 ** lag[t, t:]
        variance = 0.64 * variance + 0.25
    inverse = np.linalg.inv(cov + 0.49 * np.eye(5))
    truth = inverse.sum(0) @ y / (inverse.sum() + 0.01)
    target = wh.condition(Around(jax.numpy.asarray(unit), exact=False), y * unit)
    settings = {"filter": wh.ParticleFilter(30, proposal="guided")} if "MH" in name else {}
    engine = getattr(wh, name)(particles=30, chains=4, warmup=300, draws=1_500, **settings)
    found = wh.infer(target, engine, key=key)["mean"] / unit
    error = mcse(found)
    assert abs(found.mean() - truth) < 4 * error.mean
    assert error.mean < 0.1
    assert_allclose(found.std(), (inverse.sum() + 0.01) ** -0.5, rtol=0.15)


def test_too_few_particles_are_told(key):
    y = np.repeat(Y, 12)
    target = wh.condition(Level(r=0.05), y)
    engine = wh.ParticleMH(particles=4, chains=1, warmup=0, draws=20)
    report = wh.infer(target, engine, key=key).diagnose()
    assert "use more particles" in str(report)


def test_smc2_has_the_evidence_and_the_posterior(key):
    evidence, means = _truth()
    # So many moves that parameters would go where a wrong acceptance sends them.
    engine = wh.SMC2(parameters=800, particles=40, moves=8, threshold=0.9)
    posterior = wh.infer(_target(), engine, key=key)
    assert abs(posterior.log_evidence - evidence) < 4 * posterior.log_evidence_error
    assert 0.01 < posterior.log_evidence_error < 0.2
    weights = np.exp(np.asarray(posterior.log_weights[0]))
    for name, truth in zip("sr", means):
        values = posterior[name][0]
        mean = weights @ values
        ess = 1 / (weights**2).sum()
        sd = np.sqrt(weights @ (values - mean) ** 2)
        # Parameters share filters that were lucky: twice the independent error, and more.
        assert abs(mean - truth) < 4 * 2 * sd / np.sqrt(ess)
    path = weights @ posterior["states"][0]
    assert np.all(np.abs(path - mean_path(Y)) < 0.15)
    record = posterior.record
    assert_allclose(record.log_evidence_increment.sum(), posterior.log_evidence, rtol=1e-6)
    assert len(record.rows) == len(Y)
    assert np.all((record.acceptance_rate > 0) & (record.acceptance_rate < 1))


def test_smc2_online_gives_evidence_and_parameters_datum_by_datum(key):
    engine = wh.SMC2(parameters=800, particles=40, threshold=0.6)
    state = engine.start(wh.condition(Level(exact=False), Y[:5]), key=key)
    early = level_posterior(Y[:5])[0]
    assert abs(state.log_evidence - early) < 0.3
    for y in Y[5:]:
        state = engine.update(state, y)
    evidence, means = _truth()
    assert abs(state.log_evidence - evidence) < 0.4
    mean = float(np.exp(state.log_weights) @ np.asarray(state.draws.s))
    assert abs(mean - means[0]) < 0.1
    state = engine.update(state, np.nan)
    assert abs(state.log_evidence - evidence) < 0.4  # what is missing tells nothing
    assert int(state.have) == 9
    with pytest.raises(ValueError, match="`state` must come from `start`"):
        engine.update(None, 1.0)


def test_engines_refuse_what_is_no_sequence(key):
    for engine in (wh.ParticleMH(), wh.SMC2()):
        with pytest.raises(ValueError, match="must be a sequence of hidden states"):
            wh.infer(Gaussian(2), engine, key=key)
    with pytest.raises(ValueError, match="at least one unconstrained dimension"):
        wh.infer(wh.condition(Level(s=1.0, r=1.0), Y), wh.ParticleMH(), key=key)
    with pytest.raises(ValueError, match="`filter` must be"):
        wh.ParticleMH(filter="guided")


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [
        wh.ParticleMH(particles=20, chains=2, warmup=300, draws=1_000),
        wh.ParticleGibbs(particles=10, chains=2, warmup=300, draws=1_000),
        wh.SMC2(parameters=300, particles=20, moves=5),
    ],
    ids=lambda engine: engine.name,
)
def test_simulation_based_calibration(engine, key):
    target = wh.condition(Level(exact=False), Y[:5])
    found = wh.sbc(target, engine, key=key, simulations=60, alpha=1e-3)
    assert found.ok, found


class Births(wh.StateSpaceModel):
    """Counts of a population: a state that is neither normal nor of a finite set."""

    rate: jax.Array = wh.latent(dist.Gamma(20.0, 20.0))

    def initial(self):
        return dist.Poisson(5.0)

    def transition(self, x, t):
        return dist.Poisson(self.rate * x + 0.5)

    def emission(self, x, t):
        return dist.Poisson(x + 0.1)


def test_discrete_states_run_on_particles_alone(key):
    y = np.array([4.0, 6.0, 3.0, 7.0, 8.0])
    with pytest.warns(wh.InferenceWarning, match="only engines with particles"):
        target = wh.condition(Births(), y)
    engine = wh.ParticleMH(particles=40, chains=4, warmup=300, draws=1_500)
    posterior = wh.infer(target, engine, key=key)
    # Brute force: the forward recursion over 0 .. 60 on a grid of rates.
    from scipy.stats import gamma, poisson

    n, grid = np.arange(61), np.linspace(0.2, 2.2, 60)
    logs = []
    for rate in grid:
        alpha = poisson(5.0).pmf(n) * poisson(n + 0.1).pmf(y[0])
        for value in y[1:]:
            alpha = (alpha @ poisson(rate * n[:, None] + 0.5).pmf(n)) * poisson(n + 0.1).pmf(
                value
            )
        logs.append(np.log(alpha.sum()) + gamma(20.0, scale=1 / 20).logpdf(rate))
    weights = np.exp(np.array(logs) - max(logs))
    truth = weights @ grid / weights.sum()
    assert abs(posterior["rate"].mean() - truth) < 4 * float(mcse(posterior["rate"]).mean)
    with pytest.raises(ValueError, match="no path to go on from"):
        posterior.predict(steps=2, key=key)
