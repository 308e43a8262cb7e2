"""Studies: what is written, what is refused, and the protocol of the regressions."""

import csv

import numpy as np
import pytest
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from whence import studies
from whence.cli._app import app
from whence.models.nngp import Jeffreys, ScaleMixture
from whence.studies import (
    _smnngp as smnngp,
    _smnngp_images as images,
    _smnngp_regression as regression,
)


def _request(folder, **changes):
    asked = {"out": folder, "data": None, "size": "small", "seed": 0, "say": lambda line: None}
    return studies.Request(**{**asked, **changes})


def _data(n=24):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2))
    return x, 3.0 + np.sin(x[:, 0]) + 0.5 * rng.normal(size=n)


def test_tables_are_written(tmp_path):
    table = studies.Table("t", "A title", ("a", "b"), [["1", "22"], ["333", "4"]])
    study = studies.Study("s", "One line.", lambda request: [table])
    assert studies.carry_out(study, _request(tmp_path / "new")) == [table]
    assert list(csv.reader((tmp_path / "new/t.csv").read_text().splitlines())) == [
        ["a", "b"],
        *table.rows,
    ]
    assert (tmp_path / "new/tables.md").read_text() == (
        "A title\n\n| a   | b  |\n|-----|----|\n| 1   | 22 |\n| 333 | 4  |\n"
    )


def test_a_study_that_is_broken_off_keeps_its_tables(tmp_path):
    def run(request):
        yield studies.Table("t", "A title", ("a",), [["1"]])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        studies.carry_out(studies.Study("s", "One line.", run), _request(tmp_path))
    assert (tmp_path / "t.csv").is_file()
    assert (tmp_path / "tables.md").read_text().startswith("A title")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "`name` must be one of"),
        (["smnngp", "--size", "huge"], "`size` must be one of small, full; got 'huge'"),
        (["smnngp", "--data", "nowhere"], "`data` must be a folder"),
        (["smnngp", "--data", "."], "`data` must hold uci"),
    ],
)
def test_wrong_requests_are_refused(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["study", *arguments])
    assert result.exit_code != 0
    assert says in " ".join(result.output.split())


def test_the_kernel_chosen_has_the_highest_evidence():
    x, y = _data()
    data = regression.split(x, y, np.arange(16), np.arange(16, 24))
    assert_allclose([data.y.mean(), data.y.std()], [0, 1], atol=1e-12)
    choice = regression.choose(data, (1,))

    def evidence(network, noise):
        # Under Jeffreys' law it differs from that of the best scale by a constant.
        return float(ScaleMixture(network, Jeffreys(), noise).log_evidence(data.x, data.y))

    best = evidence(choice.network, choice.noise)
    for factor in (10**0.5, 10**-0.5):
        assert evidence(choice.network, choice.noise * factor) < best
    for name, layers in regression.networks((1,)):
        if name != choice.name:
            other = regression.Serial(*layers, choice.network.layers[-1])
            typical = float(np.mean(other.diagonal(data.x).nngp))
            other = regression.Serial(
                *layers, regression.Dense(float(other.layers[-1].weight_variance) / typical)
            )
            assert evidence(other, choice.noise) < best


def test_scores_are_in_the_unit_of_the_data():
    x, y = _data()
    scores = []
    for unit in (1.0, 1000.0):
        data = regression.split(x, unit * y, np.arange(16), np.arange(16, 24))
        choice = regression.choose(data, (1,))
        laws = regression.laws(data, choice)
        scores.append([regression.score(data, choice, law) for law in laws.values()])
    for one, thousand in zip(*scores):
        want = one.nll + np.log(1000), 1000 * one.rmse, 1000 * one.crps, one.covered
        assert_allclose(thousand, want, rtol=1e-6)


def test_few_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(smnngp, "_SMALL_N", (5,))
    table = smnngp._few_rows(_request(tmp_path), {"sine": _data()}, repeats=2)
    assert [row[:2] for row in table.rows] == [["sine", "5"]]
    assert (tmp_path / "few-rows.png").stat().st_size > 5000


def test_probability_to_be_the_largest_against_draws():
    loc, deviation = np.array([[0.0, 0.5, -1.0], [2.0, 0.0, 0.0]]), np.array([0.7, 0.2])
    roots = np.array([0.5, 2.0])
    got = images._probabilities(loc, deviation, roots)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200_000, 2, 3)) * rng.choice(roots, 200_000)[:, None, None]
    largest = (loc + deviation[:, None] * noise).argmax(-1)
    want = np.stack([(largest == c).mean(0) for c in range(3)], 1)
    assert_allclose(got, want, atol=4.5 * np.sqrt(0.25 / 200_000))


def test_corruptions_keep_the_range():
    rng = np.random.default_rng(0)
    clean = rng.uniform(size=(5, 28, 28))
    for spoilt in images.corruptions(clean, seed=1).values():
        assert spoilt.shape == clean.shape
        assert 0 <= spoilt.min() < spoilt.max() <= 1
        assert np.abs(spoilt - clean).max() > 0.1
