"""Weighted particles: degenerate weights, copies and unfinished paths are caught."""

import numpy as np
import pytest

from whence.diagnostics import ParticleHistory, diagnose


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


def path(**changes):
    good = {
        "temperature": np.array([0.01, 0.2, 1.0]),
        "ess": np.array([1024.0, 1024.0, 1500.0]),
        "acceptance_rate": np.array([0.5, 0.6, 0.65]),
    }
    return good | {name: np.asarray(value) for name, value in changes.items()}


def smc(rng, size=2048, smc=None, **arguments):
    arguments = {"record": ParticleHistory(**(smc or path())), "method": "smc"} | arguments
    particles = {"theta": rng.normal(size=(1, size, 3))}
    return diagnose(particles, {}, engine="TemperedSMC", **arguments)


def test_good_particles_are_ok(rng):
    report = smc(rng, log_weights=rng.normal(scale=0.3, size=(1, 2048)))
    assert report.ok
    assert report.title == "TemperedSMC, 2048 particles"
    assert "rhat" not in [f.code for f in report]
    assert report.numbers["weight_ess"] > 1500
    assert smc(rng, log_weights=np.zeros((1, 2048))).ok
    assert smc(rng).ok


def test_false_alarm_rate(rng):
    """Light-tailed weights (ESS near 78%): k-hat of 1000 is above its limit never in 200."""
    reports = [
        smc(rng, 1000, log_weights=rng.normal(scale=0.5, size=(1, 1000))) for _ in range(200)
    ]
    assert all(report.ok for report in reports)


def test_heavy_tailed_weights(rng):
    # Weights with a Pareto tail of shape 1.2: their mean does not exist.
    report = smc(rng, log_weights=1.2 * rng.exponential(size=(1, 2048)))
    assert report["khat"].is_problem
    assert abs(report["khat"].value - 1.2) < 0.4
    # Of shape 0.6: the variance does not exist, the mean does.
    report = smc(rng, log_weights=0.55 * rng.exponential(size=(1, 200_000)), size=200_000)
    assert report["khat"].severity == "note"


def test_one_particle_carries_all(rng):
    log_weights = rng.normal(size=(1, 2048))
    log_weights[0, 5] = 12.0
    report = smc(rng, log_weights=log_weights)
    assert report["weight_ess"].is_problem
    assert report["max_weight"].value > 0.9
    assert not report.ok


def test_nan_weights_are_an_error(rng):
    log_weights = np.zeros((1, 2048))
    log_weights[0, 3] = np.nan
    report = smc(rng, log_weights=log_weights)
    assert report["weights"].severity == "error"
    assert np.isnan(report.numbers["weight_ess"])
    assert smc(rng, log_weights=np.full((1, 2048), -np.inf))["weights"].severity == "error"


def test_particles_of_zero_weight_are_allowed(rng):
    log_weights = np.zeros((1, 2048))
    log_weights[0, ::2] = -np.inf
    report = smc(rng, log_weights=log_weights)
    assert abs(report.numbers["weight_ess"] - 1024) < 1e-6
    assert report.ok


def test_copies_are_seen_though_weights_are_equal(rng):
    particles = rng.normal(size=(1, 2048, 3))
    copies = particles[:, rng.integers(0, 40, 2048)]
    report = diagnose({"theta": copies}, {}, method="smc", record=ParticleHistory(**path()))
    assert report["distinct"].value == 40
    assert report["distinct"].is_problem


def test_a_path_without_stages_is_not_judged(rng):
    assert smc(rng, smc={name: np.zeros(0) for name in path()}).ok


def test_unfinished_and_poor_paths(rng):
    report = smc(rng, smc=path(temperature=[0.01, 0.02, 0.0200001]))
    assert report["temperature"].severity == "error"
    assert "0.02" in report["temperature"].message
    assert smc(rng, smc=path(ess=[1000.0, 3.0, 900.0]))["stage_ess"].is_problem
    assert smc(rng, smc=path(acceptance_rate=[0.5, 0.04, 0.5]))["acceptance"].is_problem
