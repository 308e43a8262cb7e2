"""Scores of class probabilities against counting by hand and closed forms."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from whence.diagnostics import brier, entropy, reliability, separation


def test_separation_of_normals_has_the_closed_form():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=20_000), rng.normal(1.5, size=10_000)
    found = separation(inside, outside)
    # Of two normal groups of equal width, the curve is known.
    auroc, fpr = stats.norm.cdf(1.5 / np.sqrt(2)), stats.norm.sf(1.5 + stats.norm.ppf(0.05))
    assert_allclose(found.auroc, auroc, atol=4 * np.sqrt(auroc * (1 - auroc) / 10_000))
    assert_allclose(found.fpr95, fpr, atol=0.03)
    u = stats.mannwhitneyu(outside, inside).statistic / (inside.size * outside.size)
    assert_allclose(found.auroc, u, rtol=1e-12)


def test_separation_counts_by_hand():
    # Scores from the highest: out, in, out, {in, out tied}, in.
    found = separation(np.array([4.0, 2.0, 1.0]), np.array([5.0, 3.0, 2.0]))
    assert_allclose(found.auroc, (3 + 2 + 1.5) / 9)
    assert_allclose(found.aupr, (1 / 1 + 2 / 3 + 3 / 5) / 3)
    assert_allclose(found.fpr95, 2 / 3)
    assert_allclose(separation(np.zeros(4), np.ones(2)), (1.0, 1.0, 0.0))
    assert_allclose(separation(np.ones(4), np.ones(4)), (0.5, 0.5, 1.0))


def test_reliability_of_calibrated_and_of_sure_predictions():
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(3), size=30_000)
    labels = (rng.uniform(size=30_000)[:, None] > probabilities.cumsum(1)).sum(1)
    found = reliability(probabilities, labels, groups=10)
    assert found.count.sum() == 30_000
    error = np.sqrt(found.confidence * (1 - found.confidence) / found.count)
    assert np.all(np.abs(found.confidence - found.accuracy) < 4 * error + 1e-12)

    sure = np.eye(3)[probabilities.argmax(1)]
    assert_allclose(
        reliability(sure, labels).error, 1 - np.mean(sure.argmax(1) == labels), atol=1e-9
    )


def test_brier_and_entropy():
    probabilities = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert_allclose(brier(probabilities, np.array([0, 1])), [0.5, 2.0])
    assert_allclose(entropy(probabilities), [np.log(2), 0.0])


def test_reliability_is_drawn():
    from matplotlib import pyplot as plt

    axes = reliability(np.full((30, 2), 0.5), np.zeros(30, int), groups=2).plot()
    assert axes.get_xlabel() == "confidence"
    plt.close(axes.figure)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: brier(np.full((2, 2), 0.5), np.array([0, 2])),
            "0 to 1; 1 of 2",
        ),
        (lambda: brier(np.full((2, 2), 0.6), np.array([0, 1])), "summing to 1"),
        (
            lambda: brier(np.full((2, 2), 0.5), np.array([0.0, 1.0])),
            "`labels` must be integers",
        ),
        (lambda: brier(np.full(2, 0.5), np.array([0, 1])), "shape"),
        (
            lambda: reliability(np.full((2, 2), 0.5), np.array([0, 1])),
            "must be 1 to 2",
        ),
        (lambda: separation(np.zeros(0), np.zeros(1)), "`inside` must hold scores"),
        (lambda: separation(np.zeros(1), np.array([np.nan])), "`outside` must be free of NaN"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
