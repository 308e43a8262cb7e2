"""The report: order, text, HTML and look-ups."""

import json

import numpy as np
import pytest

from whence.diagnostics import Finding, Report, diagnose
from whence.diagnostics._names import beyond


@pytest.fixture
def report():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 200, 2))
    x[1, :, 0] += 10
    x[0, 0, 1] = np.nan
    diverging = rng.random((4, 200)) < 0.05
    return diagnose({"a<b>": x, "c": np.ones((4, 200))}, {"diverging": diverging})


def test_order_is_by_severity_and_causes_first(report):
    order = ["error", "warning", "note", "ok"]
    ranks = [order.index(finding.severity) for finding in report]
    assert ranks == sorted(ranks)
    codes = [finding.code for finding in report]
    assert codes.index("nonfinite") < codes.index("modes") < codes.index("rhat")


def test_look_ups(report):
    assert "divergences" in report
    assert "stuck" not in report  # passed
    assert report["stuck"].severity == "ok"
    assert report.problems[0].code == "nonfinite"
    with pytest.raises(KeyError, match="No check named 'banana'"):
        report["banana"]


def test_text_says_number_limit_source_and_remedy(report):
    text = str(report)
    assert text.splitlines()[0] == "MCMC, 4 chains of 200 draws"
    assert report.verdict in text
    assert max(map(len, text.splitlines()[3:])) <= 92
    flat = " ".join(text.split())
    for finding in report.problems:
        assert " ".join(finding.message.split()) in flat
        assert " ".join(finding.remedy.split()) in flat
        assert finding.source.split(",")[0] in flat


def test_every_problem_has_number_and_remedy(report):
    for finding in report.problems:
        assert finding.value is not None
        assert finding.threshold is not None
        assert finding.remedy


def test_html_is_escaped(report):
    html = report._repr_html_()
    assert "a&lt;b&gt;" in html
    assert "a<b>" not in html
    assert html.count("<tr>") == len(report.findings) + 1


def test_dict_is_strict_json(report):
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["ok"] is False
    assert again["numbers"]["max_rhat"] == "nan"
    assert again["findings"][0]["code"] == "nonfinite"


def test_verdicts():
    assert Report((), "No problem found.").ok
    note = Finding("x", "note", "Something")
    assert Report((note,), "").ok
    assert "x" in Report((note,), "")
    assert not Report((Finding("x", "warning", "Something"),), "").ok


def test_a_value_is_told_from_its_limit():
    assert beyond(1.2345678, 1.01) == "1.235"
    assert beyond(1.0100004, 1.01) == "1.0100004"
    assert beyond(float("inf"), 1.01) == "inf"
