import re

import equinox as eqx
import pytest

import whence as wh
from whence.cli import _engines
from whence.cli._engines import build_engine, find_engine, fits, parse
from whence.cli._errors import UsageProblem
from whence.core import AbstractEngine


def test_engines_are_found_in_any_case():
    assert find_engine("sgld") is find_engine("SGLD") is wh.SGLD
    with pytest.raises(UsageProblem, match="no engine 'sglt'; there are .*SGLD"):
        find_engine("sglt")


def test_only_engines_are_listed():
    found = _engines.own_engines()
    assert "AbstractEngine" not in found
    assert all(issubclass(engine, AbstractEngine) for engine in found.values())


ENTRY_POINTS = """\
[whence.engines]
Mine = whence.inference.sgmcmc:SGLD
Broken = package_that_is_absent:It
Wrong = math:pi
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    installed = tmp_path / "mine-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_engines_of_other_packages(plugins, whence):
    assert find_engine("mine") is wh.SGLD
    with pytest.raises(
        UsageProblem, match="'Broken'.*No module named 'package_that_is_absent'"
    ):
        find_engine("broken")
    with pytest.raises(UsageProblem, match="not a whence engine"):
        find_engine("wrong")
    text = whence("engines").stdout
    assert "Mine" in text
    assert "'Broken' (package_that_is_absent:It) cannot be" in re.sub(r"[\s│]+", " ", text)


def test_the_table_shows_settings_and_defaults(whence):
    text = whence("engines").stdout
    assert "batching='reshuffle'" in text
    assert "steps=50000" in text


def test_settings_are_literals_words_and_parts():
    pairs = ["steps=1e3", "batching=iid", "step_size=1", "thin=None", "decay=ConstantStep()"]
    engine = build_engine(wh.SGLD, pairs)
    assert (engine.steps, engine.batching, engine.step_size, engine.thin) == (
        1000,
        "iid",
        1,
        None,
    )
    assert isinstance(engine.steps, int)
    engine = build_engine(wh.SGLD, ["preconditioner=RMSprop(0.9)"])
    assert type(engine.preconditioner).__name__ == "RMSprop"
    assert parse("(1, 'a')", wh.SGLD) == (1, "a")


def test_a_setting_that_converts_takes_what_it_converts():
    pairs = ["backend=numpyro", "options={'find_heuristic_step_size': True}"]
    engine = build_engine(wh.NUTS, pairs)
    assert engine.options == (("find_heuristic_step_size", True),)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("draws", "NAME=VALUE"),
        ("drawz=3", "no setting `drawz`; it has chains, steps"),
        ("steps=2.5", "`steps` must be a whole number; got 2.5"),
        ("steps=many", "`steps` must be a whole number; got 'many'"),
        ("steps=True", "`steps` must be a whole number; got True"),
        ("steps=0", "`steps` must be at least 1; got 0"),
        ("batching=odd", "`batching` must be one of 'reshuffle', 'iid', 'symmetric'"),
        ("decay=3", "`decay` must be an instance of AbstractDecay; got 3"),
        ("decay=Nothing()", "no part of an engine called `Nothing`"),
        ("decay=eval('1')", "no part of an engine called `eval`"),
        ("decay=ConstantStep(1, 2, 3)", "cannot be read"),
        ("steps=1 +", "cannot be read"),
        ("steps=1 + x", "must be a Python literal"),
    ],
)
def test_wrong_settings_are_explained(pair, words):
    with pytest.raises(UsageProblem) as caught:
        build_engine(wh.SGLD, [pair])
    assert words in str(caught.value)


def test_a_setting_given_twice_is_refused():
    with pytest.raises(UsageProblem, match="twice"):
        build_engine(wh.SGLD, ["steps=10", "steps=20"])


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (True, bool, True),
        ("false", bool, False),
        (1, bool, False),
        (True, int, False),
        (1, float, True),
        (True, float, False),
        (None, int | None, True),
        ("x", int | None, False),
        ("x", str, True),
        ((1,), tuple[int, ...], True),
        (wh.SGLD(), eqx.Module, True),
    ],
)
def test_fits(value, hint, expected):
    assert fits(value, hint) is expected
