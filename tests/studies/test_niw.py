"""The study of few-shot learning: its tasks, its scores, its pictures of characters."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from whence import studies
from whence.models import niw
from whence.studies import _niw_images as images, _niw_tasks as lines


def _request(folder):
    return studies.Request(folder, None, "small", 0, lambda line: None)


def test_tasks_are_sines_and_lines():
    x, y = map(np.asarray, lines.sine_line(jr.key(0), 400, 60))
    assert x.shape == (400, 60, 1)
    x = lines.UNIT * x[..., 0]
    assert x.min() > -5
    assert x.max() < 5
    # Least squares on both kinds at once leaves the noise.
    design = np.stack([np.ones_like(x), x, np.sin(x), np.cos(x)], -1)
    found = [np.linalg.lstsq(d, t) for d, t in zip(design, y)]
    variance = np.array([f[1][0] for f in found]) / 56
    assert_allclose(variance.mean(), 0.09, rtol=5 * np.sqrt(2 / 56 / 400))
    coefficients = np.stack([f[0] for f in found])
    is_line = np.abs(coefficients[:, 1]) > np.hypot(coefficients[:, 2], coefficients[:, 3])
    assert abs(is_line.mean() - 0.5) < 0.15  # flat lines and small sines are hard to tell


def test_scores_of_what_is_known():
    """A prediction of the noise alone around zero, on tasks that it knows nothing of."""
    known = niw.Prediction(niw.Gaussian(1.0), jnp.zeros(1), jnp.zeros((1, lines.QUERY, 1)))
    score = lines.score_of(lambda x, y, new: known, 40, 0)
    y = np.asarray(lines.new_tasks(40, 0)[1])[:, lines.SUPPORT :]
    assert_allclose(score.mse[0], (y**2).mean())
    assert_allclose(score.mse[1], (y**2).mean(1).std(ddof=1) / 40**0.5)
    assert_allclose(score.nll[0], (y**2).mean() / 2 + np.log(2 * np.pi) / 2)
    assert_allclose(score.covered, (np.abs(y) < 1.6448536).mean())


@pytest.mark.parametrize(
    "rule",
    ["NIW, linear head", pytest.param("NIW, gains of prototypes", marks=pytest.mark.slow)],
)
def test_characters_of_a_task_are_different_ones(rule, tmp_path):
    drawn = np.arange(6)[:, None] * np.ones(20)[None]
    pictures = np.kron(drawn.reshape(120, 1, 1), np.ones((28, 28))).astype(np.uint8)
    order = np.random.default_rng(0).permutation(120)
    labels = np.repeat(np.arange(6), 20)[order]
    np.savez(tmp_path / "some.npz", images=pictures[order], labels=labels)
    found = images.read(tmp_path, "some", turned=True)
    assert found.shape == (24, 20, 14, 14)
    x, y = images.episodes(found[:6], 3, 4).sample(jr.key(0))
    assert_array_equal(y, np.tile(np.repeat(np.arange(5), 4), (3, 1)))
    kinds = np.round(np.asarray(x)[:, :, 0, 0] * 255).reshape(3, 5, 4)
    assert (kinds == kinds[..., :1]).all()
    assert all(len(set(row)) == 5 for row in kinds[..., 0])
    with pytest.raises(ValueError, match="`data` must hold other.npz"):
        images.read(tmp_path, "other", turned=False)
    # Bars of different height are easily told apart, learned from or not.
    bars = np.zeros((6, 20, 28, 28), np.uint8)
    for i in range(6):
        bars[i, :, 4 * i : 4 * i + 4] = 255
    bars = np.where(np.random.default_rng(1).uniform(size=bars.shape) < 0.1, 255 - bars, bars)
    for name in ("omniglot_small1", "omniglot_small2"):
        some = {"images": bars.reshape(120, 28, 28), "labels": np.repeat(np.arange(6), 20)}
        np.savez(tmp_path / f"{name}.npz", **some)
    score = images.learned_and_judged(tmp_path, 1, rule, 40, 6, 0)
    assert score.right > 0.6
    assert 0 < score.loss < np.log(5)


@pytest.mark.slow
def test_the_small_study(tmp_path):
    tables = studies.carry_out(studies.study("niw"), _request(tmp_path))
    assert [table.name for table in tables] == ["sine-line", "toy"]
    scores = {row[0]: float(row[2].split()[0]) for row in tables[0].rows}
    assert scores["head, two components"] < 0.3
    assert scores["head, two components"] < scores["MAML, 5 steps"]
    assert (tmp_path / "niw.png").stat().st_size > 10_000
