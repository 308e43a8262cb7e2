"""The command line as a process of its own."""

import os
import subprocess
import sys

import pytest

import whence as wh

# Ctrl-C as soon as chains run: before that, it would only stop a compilation.
INTERRUPTED = """
import os, signal, sys, threading, time

def interrupt():
    while not any(t.name.startswith("whence") for t in threading.enumerate()):
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
from whence.cli import main
main()
"""


def run(*args, cwd):
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_keeps_the_draws_so_far(folder):
    endless = ("-s", "steps=2e8", "-s", "thin=1000", "-s", "warmup=0", "-s", "step_size=0.05")
    args = ("fit", "model.py:target", "-e", "sgld", *endless)
    done = run("-c", INTERRUPTED, *args, cwd=folder)
    assert done.returncode == 130, done.stderr
    assert "interrupted: " in done.stderr
    assert "marked incomplete" in done.stderr
    assert "Traceback" not in done.stderr
    saved = wh.load(folder / "posterior.nc")
    assert not saved.complete
    assert 1 <= saved.num_draws < 200_000
    assert f"{saved.num_draws} draws per chain" in done.stderr


def test_errors_reach_the_shell(folder):
    done = run("-m", "whence.cli", "check", "model.py:absent", cwd=folder)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: model.py has no `absent`; the targets in it: `target`.\n"
