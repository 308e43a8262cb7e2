"""`--engine FILE.py:NAME`: an engine in a file, fitted, stored and gone on with."""

from pathlib import Path

import numpy as np
import pytest

import whence as wh
from whence.cli._engines import build_engine, find_engine
from whence.cli._errors import FileProblem, UsageProblem

WALK = """
import jax
import jax.numpy as jnp
import jax.random as jr
import whence as wh
from whence.core import never
from model import Line


class Walk(wh.AbstractEngine):
    scale: float = 0.5
    draws: int = 50

    @property
    def name(self):
        return "Walk"

    @property
    def schedule(self):
        return wh.Schedule(2, 10, 10 + self.draws, extendable=True)

    def validate(self, target):
        if self.scale <= 0:
            raise ValueError(f"`scale` must be positive; got {self.scale}.")

    def init(self, target, *, key):
        position = target.init(key=key)
        return position, target.log_density(position)

    def step(self, target, state, index, *, key):
        position, density = state
        moved = {n: x + self.scale * jr.normal(key, x.shape) for n, x in position.items()}
        new = target.log_density(moved)
        accept = jnp.log(jr.uniform(key)) < new - density
        keep = lambda a, b: jnp.where(accept, a, b)
        state = jax.tree.map(keep, (moved, new), (position, density))
        return state, wh.Info(state[0], {"lp": state[1]})

    def done(self, state):
        return never()

    def result(self, state):
        return wh.RESULTS.successful

    def posterior(self, target, state, trace, *, key):
        return wh.Sample(trace.sampling.position, trace.sampling.stats, method="mcmc")


class Half(wh.AbstractEngine):
    pass


class Odd(Walk):
    mood: "NoSuchType" = 1


class Fails(Walk):
    def init(self, target, *, key):
        return target.no_such_thing


careful = Walk(scale=0.25)
number = 3
"""


@pytest.fixture
def walk(write, folder):
    write("walk.py", WALK)
    return folder / "walk.py"


def test_fit_from_any_folder(walk, whence, folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    arguments = ("fit", folder / "model.py", "--seed", "3", "--set", "draws=70")
    whence(*arguments, "--engine", f"{walk}:Walk", "--out", "a.nc")
    fitted = wh.load("a.nc")
    assert fitted.engine == "Walk"
    assert fitted.num_draws == 70
    whence(*arguments, "--engine", Path("..", "walk.py:Walk"), "--out", "b.nc")
    np.testing.assert_array_equal(wh.load("b.nc")["theta"], fitted["theta"])
    whence(*arguments, "--engine", f"{walk}:careful", "--out", "c.nc")
    assert not np.array_equal(wh.load("c.nc")["theta"], fitted["theta"])


def test_a_stored_run_asks_for_its_engine_again(walk, whence, error, folder, monkeypatch):
    settings = ("--set", "scale=0.3", "--seed", "3")
    whence("fit", "model.py", "-e", "walk.py:Walk", *settings, "--store", "run")
    for command in ("resume", "replay", "report"):
        assert "was made by walk.py:Walk" in error(command, "run", code=2)
    assert "was made by walk.py:Walk" in error("extend", "run", "--draws", "5", code=2)
    assert "must be the engine of the run, walk.py:Walk" in error(
        "replay", "run", "-e", "walk.py:Fails", code=2
    )
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    again = (folder / "run", "--engine", walk)  # the settings are those of the store
    assert "Say which engine" in error("replay", *again, code=2)
    again = (folder / "run", "--engine", f"{walk}:Walk")
    assert whence("replay", *again).stdout.startswith("bitwise\n")
    whence("resume", *again, "--out", "same.nc")
    whence("extend", *again, "--draws", "25", "--out", "longer.nc")
    fit = ("fit", folder / "model.py", "-e", f"{walk}:Walk", *settings, "--set", "draws=75")
    whence(*fit, "--out", "direct.nc")
    direct = wh.load("direct.nc")["theta"]
    np.testing.assert_array_equal(wh.load("longer.nc")["theta"], direct)
    np.testing.assert_array_equal(wh.load("same.nc")["theta"], direct[:, :50])
    whence("report", *again)


def test_a_configured_engine_goes_on_as_it_is(walk, whence, error):
    whence("fit", "model.py", "-e", "walk.py:careful", "--store", "run")
    assert whence("replay", "run", "-e", "walk.py:careful").stdout.startswith("bitwise\n")
    assert whence("replay", "run", "-e", "walk.py:Walk").stdout.startswith("bitwise\n")


def test_target_and_engine_of_one_file_share_its_classes(walk):
    engine = find_engine("walk.py:Walk")
    assert find_engine("walk.py:Walk") is engine
    assert isinstance(build_engine(find_engine("walk.py:careful"), ["draws=7"]), engine)


def test_an_annotation_that_cannot_be_read_is_not_checked(walk):
    assert build_engine(find_engine("walk.py:Odd"), ["mood=good"]).mood == "good"


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        (
            "walk.py",
            UsageProblem,
            "Say which engine of walk.py to use (it has Walk, Odd, Fails)",
        ),
        ("walk.pyx:Walk", UsageProblem, "FILE.py:NAME"),
        ("walk.py:a b", UsageProblem, "FILE.py:NAME"),
        ("absent.py:Walk", FileNotFoundError, "no file 'absent.py'"),
        ("walk.py:Absent", FileProblem, "the engines in it: `Walk`, `Odd`, `Fails`"),
        ("walk.py:Half", FileProblem, "it lacks `done`, `init`, `name`"),
        ("walk.py:number", FileProblem, "must be an engine"),
        ("walk.py:Line", FileProblem, "got the class Line"),
        ("broken.py:Walk", FileProblem, "broken.py, line 2: ZeroDivisionError"),
    ],
)
def test_what_is_no_engine_is_explained(walk, write, spec, kind, words):
    write("broken.py", "x = 1\ny = x / 0\n")
    with pytest.raises(kind) as caught:
        find_engine(spec)
    assert words in str(caught.value)


def test_faults_inside_the_engine_are_one_paragraph(walk, error):
    said = error("fit", "model.py", "-e", "walk.py:Fails")
    assert "walk.py, line" in said
    assert "no_such_thing" in said
    assert "`scale` must be positive" in error(
        "fit", "model.py", "-e", "walk.py:Walk", "-s", "scale=-1"
    )
    said = error("fit", "model.py", "-e", "walk.py:Walk", "-s", "scale=wide", code=2)
    assert "`scale` of Walk must be float; got wide" in said
    said = error("fit", "model.py", "-e", "walk.py:Walk", "-s", "size=1", code=2)
    assert "Walk has no setting `size`; it has scale, draws" in said
