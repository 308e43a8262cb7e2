"""The study of fractional noise, small enough to see that all of it is written."""

import numpy as np
import pytest

from whence import studies
from whence.studies import _fbm as study


def test_films_are_of_digits_in_their_box():
    films = study.films(None, 4, 6, np.random.default_rng(0))
    assert films.shape == (4, 6, study.CANVAS, study.CANVAS)
    number = [sum(map(int, glyph)) for glyph in study.GLYPHS]
    assert films.sum((2, 3)).tolist() == [[number[i % 3]] * 6 for i in range(4)]
    assert np.ptp([np.argwhere(frame)[0] for frame in films[0]], axis=0).max() > 0


@pytest.mark.slow
def test_all_tables_are_written(tmp_path, monkeypatch):
    plan = study.StudySize(12, 3, 2, 20, 4, 4, 30)
    monkeypatch.setitem(study.PLANS, "small", plan)
    rng = np.random.default_rng(0)
    rows = np.stack([np.arange(622, 642), rng.normal(1150, 80, 20)], axis=1)
    np.savetxt(tmp_path / "nile_minima.csv", rows, delimiter=",", header="year,level")
    images = rng.integers(0, 256, (500, 28, 28)).astype(np.uint8)
    np.savez(tmp_path / "mnist_test10k.npz", images=images, labels=np.zeros(500, int))
    request = studies.Request(tmp_path / "out", tmp_path, "small", 0, lambda line: None)
    tables = studies.carry_out(studies.study("fbm"), request)
    assert [table.name for table in tables] == ["hurst", "bridges", "varying", "nile", "digits"]
    assert (tmp_path / "out/fbm.png").is_file()
    bridges = {tuple(row[:2]): row for row in tables[1].rows}
    found = bridges["0.7", "0"]
    log_evidence, elbo = float(found[2]), float(found[3].split()[0])
    assert abs(log_evidence - elbo) < 1e-3  # the closed-form control, before any update
    assert abs(float(found[5]) - 0.5854) < 0.01
