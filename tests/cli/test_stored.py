"""What the commands do with a stored fit: extend, replay, report, without naming the model."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import whence as wh
from whence.storage import RunStore

SETTINGS = ("--set", "chains=2", "--set", "warmup=60", "--set", "draws=40", "--seed", "4")


@pytest.fixture
def stored(whence):
    whence("fit", "model.py:target", *SETTINGS, "--store", "run", "--out", "a.nc")


@pytest.fixture
def stored_as(folder):
    """Write another entry into the manifest of the run, with its checksum."""

    def write(name, value):
        store = RunStore.open(folder / "run")
        store.manifest[name] = value
        store.write_manifest()

    return write


def test_extend_replay_and_report_need_only_the_folder(stored, whence, folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")  # the manifest names the file by its full path
    text = whence("resume", folder / "run").stdout  # the store holds it all: no file unasked
    assert f"Wrote {folder / 'run'}. For plots: whence report" in text
    assert not list(Path.cwd().iterdir())
    whence("extend", folder / "run", "--draws", "25", "--out", "b.nc")
    longer = ("--set", "chains=2", "--set", "warmup=60", "--set", "draws=65", "--seed", "4")
    whence("fit", f"{folder / 'model.py'}:target", *longer, "--out", "c.nc")
    extended, direct = wh.load("b.nc"), wh.load("c.nc")
    np.testing.assert_array_equal(extended["theta"], direct["theta"])
    assert whence("replay", folder / "run").stdout.startswith("bitwise\n")
    again = whence("resume", folder / "run", "--out", "d.zarr").stdout
    assert "Wrote d.zarr" in again
    np.testing.assert_array_equal(wh.load("d.zarr")["theta"], direct["theta"])
    whence("report", folder / "run")
    assert "posterior predictive" in (folder / "run.html").read_text().lower()


def test_fit_until(whence, folder):
    text = whence(
        "fit", "model.py:target", *SETTINGS, "--ess", "200", "--max-draws", "3000"
    ).stdout
    assert "Why it ended" in text
    assert "asked: ESS at least 200" in text
    assert wh.load("posterior.nc").stopped in text


def test_a_store_is_the_only_thing_written(whence, folder):
    before = {path.name for path in folder.iterdir()}
    text = whence("fit", "model.py:target", *SETTINGS, "--store", "only").stdout
    assert "Wrote only. For plots: whence report only" in text
    assert {path.name for path in folder.iterdir()} - before <= {"only", "__pycache__"}


def test_errors_are_one_paragraph(stored, stored_as, whence, error, folder):
    assert "Say either --draws" in error("extend", "run", code=2)
    assert "`rhat` must be above 1" in error("extend", "run", "--rhat", "0.9")
    assert "not a run store" in error("replay", "model.py")
    assert "ends by itself" in error("fit", "model.py:target", "-e", "bbvi", "--ess", "9")
    stored_as("source", None)
    assert "does not say where its target comes from" in error("resume", "run", code=2)
    for name in ("replica-0000", "replica-0001"):
        (folder / "run" / name / "state.npz").unlink()
    assert "no draws yet" in error("replay", "run", "model.py:target")


def test_replay_of_other_draws_has_exit_code_1(stored, whence, folder):
    for chain in ("replica-0000", "replica-0001"):
        for file in (folder / "run" / chain).glob("*-*.npz"):
            with np.load(file) as content:
                arrays = {n: content[n] for n in content.files}
            first = sorted(arrays)[0]
            np.savez(file, **(arrays | {first: arrays[first] + 3.0}))
    result = whence("replay", "run", code=1)
    assert "different" in result.stdout
    assert "same model?" in result.stdout


def test_a_file_that_a_store_names_is_run_only_if_it_is_the_users(
    stored, stored_as, whence, error, folder, monkeypatch
):
    evil = folder / "run" / "evil.py"
    evil.write_text("open('PWNED', 'w').close()\nfrom model import target\n")
    (folder / "link.py").symlink_to(evil)
    commands = (("report", "run"), ("replay", "run"), ("resume", "run", "--out", "b.nc"))
    for command in (*commands, ("extend", "run", "--draws", "5", "--out", "b.nc")):
        for source in ("model.py:target", f"{evil}:target", f"{folder / 'link.py'}:target"):
            stored_as("source", source)
            assert "names" in error(*command, code=2)
    assert not (folder / "PWNED").exists()
    if hasattr(os, "geteuid"):
        stored_as("source", f"{folder / 'model.py'}:target")
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
            assert "another user's" in error("replay", "run", code=2)
    stored_as("source", "model.py:target")
    trusted = whence("replay", "run", "--trust")
    assert trusted.stderr == "running: model.py:target, as the store run says\n"
    assert whence("replay", "run", "model.py:target").stderr == ""


def test_two_processes_do_not_write_to_one_store(
    stored, whence, error, folder, storage_process
):
    """The lock is that of another process; killed, it is gone."""
    code = (
        "import time; from whence.storage import RunStore; s = RunStore.open('run'); s.lock()"
    )
    command = storage_process(f"{code}; print('locked', flush=True); time.sleep(600)")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "locked\n"
            said = error("extend", "run", "model.py:target", "--draws", "5", "--out", "b.nc")
            assert f"is being written by process {other.pid}" in said
            assert "bitwise" in whence("replay", "run").stdout  # reading needs no lock
        finally:
            other.kill()
    whence("extend", "run", "--draws", "5", "--out", "b.nc")
    assert wh.load("b.nc").num_draws == 45
    assert not (folder / "run" / "lock").exists()
