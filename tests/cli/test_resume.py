"""`whence fit --store` and `whence resume`."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import whence as wh

MODEL = """
import jax, numpy as np, numpyro.distributions as dist, whence as wh

class Line(wh.Model):
    slope: jax.Array = wh.latent(dist.Normal(0.0, 1.0))
    def likelihood(self, x):
        return dist.Normal(self.slope * x, 1.0)

x = np.linspace(0.0, 1.0, 20)
target = wh.condition(Line(), 2.0 * x, x)
"""


def _whence(*arguments, **kwargs):
    command = [sys.executable, "-m", "whence.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    return f"{tmp_path / 'model.py'}:target"


@pytest.mark.slow
def test_killed_and_resumed_gives_the_file_of_an_uninterrupted_run(model, tmp_path):
    settings = ["--engine", "sgld", "--set", "steps=300_000", "--set", "thin=30"]
    settings += ["--set", "step_size=1e-2", "--seed", "5"]
    whole = _whence("fit", model, *settings, "--out", str(tmp_path / "whole.nc"))
    assert whole.returncode == 0, whole.stderr
    store = tmp_path / "run"
    command = [sys.executable, "-m", "whence.cli", "fit", model, *settings]
    command += ["--store", str(store), "--out", str(tmp_path / "killed.nc")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if list(store.glob("replica-*/*-*.npz")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    out = tmp_path / "resumed.nc"
    resumed = _whence("resume", str(store), model, "--out", str(out))
    assert resumed.returncode == 0, resumed.stderr
    np.testing.assert_array_equal(
        wh.load(out)["slope"], wh.load(tmp_path / "whole.nc")["slope"]
    )


def test_errors_are_one_paragraph(error):
    assert "not a run store" in error("resume", "nothing", "model.py:target")
