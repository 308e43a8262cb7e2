"""Modes are found where they are, and slow, stuck or descending chains are not called so."""

import numpy as np
import pytest
from scipy.signal import lfilter

from whence.diagnostics import diagnose

CHAINS, DRAWS, RUNS = 4, 1000, 100


def chains(rng, coefficient, runs=RUNS, draws=DRAWS, number=CHAINS):
    """AR(1) chains of N(0, 1) from equilibrium, `(run, chain, draw)`."""
    noise = rng.normal(size=(runs, number, draws))
    noise[..., 1:] *= np.sqrt(1 - coefficient**2)
    return lfilter([1.0], [1.0, -coefficient], noise, axis=-1)


def codes(x, **stats):
    return {finding.code for finding in diagnose({"x": x}, stats).problems}


@pytest.mark.parametrize("coefficient", [0.99, 0.995, 0.998, 0.999, 0.9995])
def test_slow_chains_in_one_normal_are_no_modes(coefficient):
    """No alarm in 7,200 runs when the limit was set: three in 100 would be another rule."""
    runs = chains(np.random.default_rng(1), coefficient)
    found = [codes(x) for x in runs]
    assert sum("modes" in f for f in found) <= 2
    assert all("rhat" in f for f in found)


def test_where_it_cannot_tell_it_says_so():
    """An autocorrelation time of 4 times the run: about half of the runs are apart."""
    found = [diagnose({"x": x}, {}) for x in chains(np.random.default_rng(2), 0.9995)]
    apart = [report for report in found if "apart" in report]
    assert 30 <= len(apart) <= 70  # 45% in 400 runs; five standard errors to each side
    for report in apart:
        finding = report["apart"]
        assert finding.severity == "error"
        assert "cannot tell" in finding.message
        assert report.verdict.startswith("Do not use these draws: chains are in different")


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.8])
def test_two_modes_are_found(coefficient):
    """In all of 400 runs each, with the right chains on either side."""
    runs = chains(np.random.default_rng(3), coefficient)
    runs[:, [0, 3]] += 8.0
    reports = [diagnose({"x": x}, {}) for x in runs]
    messages = [report["modes"].message for report in reports if "modes" in report]
    assert len(messages) >= RUNS - 2
    for message in messages:
        low, high = message.split(": ", 1)[1].removeprefix("x is around ").split(" and around ")
        assert abs(float(low.split()[0])) < 1.0
        assert abs(float(high.split()[0]) - 8.0) < 1.0
        assert set(low.split("chain ")[1].split(", ")) <= {"1", "2"}
        assert set(high.split("chain ")[1].split(", ")) <= {"0", "3"}


def test_a_descending_chain_is_no_mode():
    """One chain comes from far off; its speed varies from a tenth of the run to three runs."""
    rng = np.random.default_rng(4)
    runs = chains(rng, 0.3)
    speeds = DRAWS * np.geomspace(0.1, 3.0, RUNS)
    runs[:, 2] += 50.0 * np.exp(-np.arange(DRAWS) / speeds[:, None])
    found = [codes(x) for x in runs]
    assert not any("modes" in f for f in found)
    assert all("rhat" in f for f in found)
    assert any("apart" in f for f in found)


@pytest.mark.parametrize("creep", [0.0, 1e-4])
def test_a_stuck_chain_is_no_mode(creep):
    for x in chains(np.random.default_rng(5), 0.3, runs=20):
        x[1] = 30.0 + creep * x[1]
        assert {"modes", "apart"}.isdisjoint(codes(x))
        assert "stuck" in codes(x)


def test_modes_are_found_beside_chains_that_tell_nothing():
    """Two chains in each of two modes, one frozen, one on its way between them."""
    for x in chains(np.random.default_rng(6), 0.3, runs=20, number=6):
        x[[1, 2]] += 8.0
        x[4] = 20.0
        x[5] += np.linspace(0.0, 8.0, DRAWS)
        message = diagnose({"x": x}, {})["modes"].message
        assert "in chain 0, 3 and around" in message
        assert message.endswith("in chain 1, 2")


def test_an_element_that_is_constant_within_chains_hides_no_mode():
    """In a mode an indicator is constant: it has no ESS, the element beside it has."""
    x = chains(np.random.default_rng(7), 0.3, runs=1)[0]
    x[2:] += 8.0
    variables = {"x": x, "is_high": (x > 4.0).astype(float)}
    assert "modes" in diagnose(variables, {})
