"""`--mesh` and `--distributed`."""

import os
import socket
import subprocess
import sys

import pytest
from numpy.testing import assert_array_equal

import whence as wh
from whence.cli._devices import parse_mesh, prepare_devices
from whence.cli._errors import UsageProblem

SGLD = ("-e", "sgld", "-s", "steps=200", "-s", "chains=4", "-s", "step_size=0.01")


def test_mesh_as_text():
    assert parse_mesh("chain=4") == {"chain": 4}
    assert parse_mesh("chain=4, data=2") == {"chain": 4, "data": 2}


@pytest.mark.parametrize("text", ["4", "chain", "chain=", "chain=two", "row=2", "chain=-1"])
def test_mesh_that_cannot_be_read(text):
    with pytest.raises(UsageProblem, match="--mesh takes"):
        parse_mesh(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((None, False, "localhost:1", None, None), "go with --distributed"),
        ((None, True, "localhost:1", 2, 0), "needs --mesh"),
        (("chain=4", True, "localhost:1", 3, 0), "must divide the mesh"),
        (("chain=4", True, "localhost:1", 8, 0), "must divide the mesh"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UsageProblem, match=message):
        prepare_devices(*options)


def _start(folder, out, *options):
    environment = {n: v for n, v in os.environ.items() if n != "JAX_NUM_CPU_DEVICES"}
    return subprocess.Popen(
        [sys.executable, "-m", "whence.cli", "fit", "model.py:target", *SGLD, *options]
        + ["--out", out, "--mesh", "chain=4"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_fit_as_one(folder):
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    join = ("--distributed", "--coordinator", f"localhost:{port}", "--processes", "2")
    several = [_start(folder, f"{i}.nc", *join, "--process", str(i)) for i in (0, 1)]
    printed = [process.communicate(timeout=300)[0] for process in several]
    assert [process.returncode for process in several] == [0, 0], printed
    alone = _start(folder, "alone.nc")
    assert "Verdict" in alone.communicate(timeout=300)[0]
    assert "Verdict" in printed[0]
    assert "Verdict" not in printed[1]
    assert not (folder / "1.nc").exists()
    assert_array_equal(wh.load(folder / "0.nc")["mu"], wh.load(folder / "alone.nc")["mu"])
