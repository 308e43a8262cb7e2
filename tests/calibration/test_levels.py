"""The level holds for all quantities together, and each test is what its formula says."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.calibration import _reported
from whence.calibration._calibration import Calibration
from whence.calibration._geweke import _compare
from whence.calibration._joint import JointTest
from whence.calibration._uniform import p_value

SIZE, DRAWS = 50, 19
UNIFORM = np.resize(np.arange(DRAWS + 1), SIZE)


def ranks_with(low, high):
    """Ranks, ever more of them zero, whose p-value by themselves is in a range."""
    for zeros in range(SIZE):
        ranks = np.concatenate([np.zeros(zeros, int), UNIFORM[zeros:]])
        if low < p_value(ranks, DRAWS) < high:
            return ranks
    raise AssertionError


def calibration(ranks, others):
    every = {"a": ranks}
    if others:
        every["b"] = np.tile(UNIFORM[:, None], (1, others))
    return Calibration("E", every, every, DRAWS, 0.05, {}, np.full(SIZE, 100.0), 0)


def test_a_quantity_is_judged_among_all_that_are_looked_at(monkeypatch):
    mild, clear = ranks_with(0.005, 0.05), ranks_with(0.0, 1e-5)
    assert not calibration(mild, 0).ok
    assert calibration(mild, 39).ok  # of 40, one in 20 to one in 200 means nothing
    assert not calibration(clear, 39).ok
    levels = []
    band = lambda size, num, level: levels.append(level) or (np.zeros(num), np.full(num, size))
    monkeypatch.setattr(_reported, "band", band)
    pytest.importorskip("matplotlib")
    calibration(mild, 3).plot()
    assert_allclose(levels, 0.05 / 4)


def joint(drift, others=0):
    ranks, drifts, memory = {"a": UNIFORM}, {"a": np.array([drift, 0.0])}, {"a": np.zeros(())}
    if others:
        ranks["b"] = np.tile(UNIFORM[:, None], (1, others))
        drifts["b"], memory["b"] = np.zeros((2, others)), np.zeros(others)
    return JointTest("E", ranks, drifts, memory, DRAWS, 5, 0.02, 0, 1.0, 1.0, {}, {})


def test_three_tests_on_both_sides_of_every_quantity():
    """Of |z| = 2.5 and 2.9 the two-sided p-values are 0.0124 and 0.0037."""
    assert_allclose(joint(2.5).p_values["a"], 3 * 0.012419, rtol=1e-3)
    assert joint(-2.5).ok
    assert not joint(-2.9).ok
    assert joint(2.9, others=1).ok
    assert not joint(3.5, others=1).ok


def test_ranks_and_drift_of_geweke_in_closed_form():
    rng = np.random.default_rng(0)
    size, draws = 2000, 49
    # Counts have ties, which go anywhere: the ranks are those of a continuous variable.
    first, last = rng.poisson(1.0, size), rng.poisson(1.0, size)
    prior = rng.poisson(1.0, (draws, size))
    ranks, drift, memory = _compare(first, last[None], prior, rng)
    assert abs(ranks.mean() - draws / 2) < 4.5 * np.sqrt((draws + 1) ** 2 / 12 / size)
    assert p_value(ranks, draws) > 1e-4
    assert np.abs(drift).max() < 4.5
    assert abs(memory) < 4.5 / np.sqrt(size)
    # Uniform values pushed up by 0.1: the change has a variance of 2/12 and no drift else.
    first, last = rng.uniform(size=size), rng.uniform(size=size)
    prior = rng.uniform(size=(draws, size))
    _, drift, _ = _compare(first, 0.1 + 0.9 * last[None], prior, rng)
    expected = 0.05 / np.sqrt((1 + 0.81) / 12 / size)
    assert_allclose(drift[0], expected, atol=4.5)
    assert drift[0] > 4.5
