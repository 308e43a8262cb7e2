"""The study of autoencoders: its data, tables and pictures; the whole of it when slow."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

from whence import studies
from whence.studies import _bae as bae, _bae_functions as functions
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
    numbers = lambda k: bae.Scores((k, np.nan, 2 * k, 0.1, 0.2), images, images)
    runs = [{"a": numbers(k), "b": numbers(k + 1)} for k in (1.0, 3.0)]
    table = bae._table("t", "A title", runs)
    rest = ["0.1000 ± 0.0000", "0.2000 ± 0.0000"]
    assert table.rows[0] == ["a", "2.0 ± 1.0", "-", "4.0 ± 2.0", *rest]
    paired = bae._table("t", "A title", runs, "b").rows[0]
    assert paired[:4] == ["a", "-1.0 ± 0.0", "-", "-2.0 ± 0.0"]
    draw_images(tmp_path / "a.png", images, runs[0])
    assert (tmp_path / "a.png").stat().st_size > 1_000


def _regression(folder, n=40):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)) * np.array([1.0, 10.0, 0.1])
    tests = {f"test_{i}": rng.permutation(n)[:5] for i in range(2)}
    np.savez(folder / functions.FILE, x=x, y=5 * np.tanh(x[:, 0]) + 20, **tests)
    return tests


def test_regression_is_on_fixed_splits(tmp_path):
    tests = _regression(tmp_path)
    first, _ = functions.read_boston(tmp_path, 2)
    assert first.x.shape == (35, 3)
    assert first.x_new.shape == (5, 3)
    with np.load(tmp_path / functions.FILE) as file:
        y = file["y"]
    back = first.y_new * first.unit
    assert_allclose(back - back[0], y[tests["test_0"]] - y[tests["test_0"]][0], atol=1e-12)
    at = functions.measurement(first, 40, 0)
    known = (at[:, None] == first.x[None]).all(-1).any(1)
    assert known.sum() == 28
    assert (at >= first.x.min(0) - 1e-12).all()
    assert (at <= first.x.max(0) + 1e-12).all()


def test_errors_of_functions_are_in_the_units_of_outputs():
    unit, new = 3.0, np.array([0.5, -1.0])
    data = functions.Split(np.zeros((1, 1)), np.zeros(1), np.zeros((2, 1)), new, unit)
    drawn = new + np.array([[0.3, 0.1], [-0.1, 0.1]])
    found = functions.errors(drawn, data)
    mean, spread = drawn.mean(0) * unit, np.sqrt(drawn.var(0) + 0.1) * unit
    assert_allclose(found.rmse, unit * 0.1, rtol=1e-12)
    assert_allclose(found.nll, -norm(mean, spread).logpdf(new * unit).mean(), rtol=1e-12)
    runs = [{"p": found}, {"p": functions.Errors(0.5, 1.0)}]
    for table in functions.tables(runs, runs):
        assert table.rows[0][1] == "0.400 ± 0.141"


def test_curves_have_a_gap():
    data = functions.read_curve(0)
    assert data.x.shape == (64, 1)
    gaps = np.diff(np.sort(data.x[:, 0]))
    # 0.4 of the range of inputs; they are standardised.
    assert 0.35 < gaps.max() / np.ptp(data.x) < 0.6
    assert_allclose([data.y.mean(), data.y.std()], [0, 1], atol=1e-12)


@pytest.mark.slow
def test_the_study_runs(tmp_path, monkeypatch):
    plan = bae.StudySize(2, 40, 5, 240, 40, 20, (30, 60), 2, 400, 20)
    monkeypatch.setitem(bae.PLANS, "small", plan)
    request = studies.Request(tmp_path, None, "small", 0, lambda line: None)
    table, paired = studies.carry_out(bae.STUDY, request)
    assert len(table.rows) == 9
    assert all(np.isfinite(float(row[1].split()[0])) for row in table.rows)
    assert float(paired.rows[1][1].split()[0]) == 0
    assert (tmp_path / "bars.png").is_file()
    assert "two halves of data" in (tmp_path / "priors.txt").read_text()
    _regression(tmp_path)
    (split,) = functions.read_boston(tmp_path, 1)
    found = functions.play(split, 0, 200, 20)
    assert set(found) == {"N(0, 1)", "fan-in", "matched"}
    assert all(np.isfinite(errors).all() for errors in found.values())
