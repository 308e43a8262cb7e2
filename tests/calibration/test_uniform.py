"""The test of uniformity and its band, against enumeration and simulation."""

import itertools

import numpy as np
import pytest

from whence.calibration._rank_messages import shape
from whence.calibration._uniform import _tails, band, counts_below, p_value


def _smallest_tail(ranks, num_draws):
    counts = counts_below(np.asarray(ranks), num_draws)
    return _tails(len(ranks), num_draws)[np.arange(num_draws), counts].min()


def test_p_value_against_all_outcomes():
    num_draws, size = 4, 5
    tails = np.array(
        [_smallest_tail(r, num_draws) for r in itertools.product(range(5), repeat=size)]
    )
    for ranks in ([0, 0, 0, 0, 0], [0, 1, 2, 3, 4], [4, 4, 3, 4, 1], [0, 0, 4, 4, 4]):
        exact = np.mean(tails <= _smallest_tail(ranks, num_draws) * (1 + 1e-9))
        np.testing.assert_allclose(p_value(np.array(ranks), num_draws), exact, rtol=1e-9)


@pytest.mark.parametrize(("size", "num_draws"), [(200, 99), (50, 19)])
def test_band_holds_its_level(size, num_draws):
    """Uniform ranks leave the 95% band in at most 5% of cases, and not in far fewer."""
    low, high = band(size, num_draws, 0.05)
    rng = np.random.default_rng(20261120)
    trials = 4000
    ranks = rng.integers(0, num_draws + 1, (trials, size))
    counts = np.stack([counts_below(r, num_draws) for r in ranks])
    left = np.mean(np.any((counts < low) | (counts > high), axis=1))
    error = np.sqrt(0.05 * 0.95 / trials)
    # The test is discrete: its level may be somewhat below what was asked for.
    assert 0.035 - 4 * error < left < 0.05 + 4 * error


def test_band_and_p_value_agree():
    low, high = band(60, 19, 0.1)
    rng = np.random.default_rng(3)
    for _ in range(300):
        ranks = rng.integers(0, 20, 60)
        counts = counts_below(ranks, 19)
        p = p_value(ranks, 19)
        if abs(p - 0.1) > 0.002:  # the band is found to this precision
            assert np.any((counts < low) | (counts > high)) == (p < 0.1)


def test_p_values_are_not_too_small():
    rng = np.random.default_rng(7)
    p = np.array([p_value(rng.integers(0, 100, 100), 99) for _ in range(2000)])
    for level in (0.01, 0.05, 0.2, 0.5):
        error = np.sqrt(level * (1 - level) / len(p))
        assert np.mean(p <= level) < level + 4 * error


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [(0.5, 0.5, "narrow"), (3.0, 3.0, "wide"), (2.0, 1.0, "low"), (1.0, 2.0, "high")],
)
def test_shapes_have_names(first, second, name):
    at = np.random.default_rng(1).beta(first, second, 400)
    ranks = np.floor(at * 100).astype(int)
    assert shape(ranks, 99) == name
    assert p_value(ranks, 99) < 1e-4
