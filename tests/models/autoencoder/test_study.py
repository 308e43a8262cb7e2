"""The study of autoencoders: its data, tables and pictures; the whole of it when slow."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence import studies
from whence.studies import _bae as bae
from whence.studies._bae_figures import draw_images


def test_bars_are_images():
    images = bae.made_up(np.random.default_rng(0), 20, True)
    assert images.shape == (20, 12, 12)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.max(axis=(1, 2)).min() > 0.8


def test_zeros_are_for_the_prior(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 60)
    pixels = np.broadcast_to(labels[:, None, None], (600, 28, 28)).astype(np.uint8)
    order = rng.permutation(600)
    np.savez(tmp_path / "mnist_test10k.npz", images=pixels[order], labels=labels[order])
    images = bae.read_digits(tmp_path, 50, 0)
    assert images.prior.max() == 0
    assert images.train.min() > 0
    assert images.test.shape == (50, 28, 28)
    assert_allclose(images.test.max(), 9 / 255)
    assert bae.read_faces(tmp_path, 50, 0) is None
    with pytest.raises(ValueError, match="`data` must hold mnist_test10k.npz"):
        bae.read_digits(tmp_path / "none", 50, 0)


def test_tables_and_pictures(tmp_path):
    images = np.zeros((12, 5, 5))
    runs = [{"a": bae.Scores((k, np.nan, 0.1, 0.2), images, images)} for k in (1.0, 3.0)]
    table = bae._table("t", "A title", runs)
    assert table.rows == [["a", "2.0 ± 1.0", "-", "0.1000 ± 0.0000", "0.2000 ± 0.0000"]]
    draw_images(tmp_path / "a.png", images, runs[0])
    assert (tmp_path / "a.png").stat().st_size > 1_000


@pytest.mark.slow
def test_the_study_runs(tmp_path, monkeypatch):
    plan = bae.StudySize(1, 40, 240, 40, 20, (30,))
    monkeypatch.setitem(bae.PLANS, "small", plan)
    request = studies.Request(tmp_path, None, "small", 0, lambda line: None)
    (table,) = studies.carry_out(bae.STUDY, request)
    assert len(table.rows) == 6
    assert all(np.isfinite(float(row[1])) for row in table.rows)
    assert (tmp_path / "bars.png").is_file()
    assert "two halves of data" in (tmp_path / "priors.txt").read_text()
