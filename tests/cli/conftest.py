"""A model file to work on, and the command line in this process."""

import textwrap

import pytest
from typer.testing import CliRunner

from whence.cli import app

MODEL = """\
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import whence as wh


class Line(wh.Model):
    mu: jax.Array = wh.latent(dist.Normal(0.0, 10.0))
    theta: jax.Array = wh.latent(dist.Normal(0.0, 1.0), dims="group")

    def likelihood(self):
        return dist.Normal(self.mu + self.theta, 1.0)


Y = jnp.asarray([4.0, 5.0, 6.0])
model = Line(coords={"group": ["a", "b", "c"]})
target = wh.condition(model, Y)


def make():
    return wh.condition(model, 10.0 * Y)


def needs(number):
    return target


def fails():
    return wh.condition(model, jnp.ones(4))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    # A file on the search path of an earlier test must not be found by a later one.
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def write(folder):
    def write(name, text):
        (folder / name).write_text(textwrap.dedent(text))
        return name

    return write


@pytest.fixture
def whence(folder):
    def invoke(*args, code=0):
        result = CliRunner().invoke(app, [str(a) for a in args])
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def error(whence):
    """Run a command that must fail; return its one paragraph."""

    def invoke(*args, code=1):
        result = whence(*args, code=code)
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.output
        return result.stderr

    return invoke


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard promotion of types and ranks: these tests are about the command line."""
