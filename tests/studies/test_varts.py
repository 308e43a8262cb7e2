"""The study of variance-adaptive Thompson sampling, tiny."""

import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from whence import studies
from whence.models.bandit import PolicyRun
from whence.studies import _varts as varts
from whence.studies._varts_problems import PublishedRegret, problems


def _request(folder):
    return studies.Request(folder, None, "small", 0, lambda line: None)


def _run(final):
    return PolicyRun(np.array([1]), np.asarray(final)[None], np.ones((2, len(final))))


def test_tables_and_figures(tmp_path):
    plan = varts.StudySize(instances=12, horizon=60)
    whole = problems()["p1"]
    few = whole._replace(policies={n: whole.policies[n] for n in ("VarTS", "UCB1")})
    key = jr.key(0)
    ten = varts.grow(10, 60, plan, key)
    results = varts.Results({"p1": varts.play(few, plan, key)}, {60: ten}, {10: ten})
    small = studies.Study("varts", "", lambda r: varts.report(results, plan, r.out))
    tables = studies.carry_out(small, _request(tmp_path))
    assert [t.name for t in tables] == ["p1", "horizons", "arms"]
    assert [row[0] for row in tables[0].rows] == ["VarTS", "UCB1"]
    mean = results.problems["p1"]["UCB1"].final.mean()
    assert tables[0].rows[1][1].startswith(f"{mean:.1f} ± ")
    # References are for 2,000 rounds.
    assert tables[0].rows[1][4:] == ["", ""]
    for name in ("regret.png", "growth.png"):
        assert (tmp_path / name).stat().st_size > 5_000


def test_every_policy_has_a_reference_and_every_reference_a_policy():
    for problem in problems().values():
        assert set(problem.references) == set(problem.policies)
    assert "varts" in studies.names()
    assert studies.study("varts").name == "varts"
    assert set(varts.PLANS) == set(studies.SIZES)


def test_distances_from_a_reference():
    final = np.random.default_rng(0).gamma(2.0, 10.0, 500)
    run, error = _run(final), stats.sem(final)
    z = varts.z_mean(run, PublishedRegret(20.0, 0.3))
    assert_allclose(z, (final.mean() - 20.0) / np.hypot(error, 0.3))
    # Without a standard error: that of 2,000 instances like these.
    z = varts.z_mean(run, PublishedRegret(20.0))
    assert_allclose(z, (final.mean() - 20.0) / np.hypot(error, error / 2))
    assert varts.z_median(run, PublishedRegret(20.0, median=np.median(final) + 0.4)) == 0.0


def test_distances_of_medians_are_standard_normal():
    rng = np.random.default_rng(1)
    z = []
    for _ in range(300):
        median = np.median(rng.gamma(2.0, 100.0, 2_000))
        z.append(
            varts.z_median(
                _run(rng.gamma(2.0, 100.0, 1_000)), PublishedRegret(0.0, None, median)
            )
        )
    # Half a unit is forgiven, for rounding; here it hardly matters.
    assert abs(np.mean(z)) < 0.25
    assert 0.75 < np.std(z) < 1.2


@pytest.mark.slow
def test_the_small_study(tmp_path):
    tables = studies.carry_out(studies.study("varts"), _request(tmp_path))
    assert len(tables) == 8
    compared = [row[-1] for table in tables for row in table.rows if row[-1]]
    assert len(compared) > 80
    # The last number is of medians where means hang on a few instances.
    assert all(abs(float(z.split()[-1])) < 4.5 for z in compared)
