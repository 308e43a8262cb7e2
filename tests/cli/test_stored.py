"""What the commands do with a stored fit: extend, replay, report, without naming the model."""

import json

import numpy as np
import pytest

import whence as wh

SETTINGS = ("--set", "chains=2", "--set", "warmup=60", "--set", "draws=40", "--seed", "4")


@pytest.fixture
def stored(whence):
    whence("fit", "model.py:target", *SETTINGS, "--store", "run", "--out", "a.nc")


def test_extend_replay_and_report_need_only_the_folder(stored, whence, folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")  # the manifest names the file by its full path
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


def test_errors_are_one_paragraph(stored, whence, error, folder):
    assert "Say either --draws" in error("extend", "run", code=2)
    assert "`rhat` must be above 1" in error("extend", "run", "--rhat", "0.9")
    assert "not a run store" in error("replay", "model.py")
    assert "ends by itself" in error("fit", "model.py:target", "-e", "bbvi", "--ess", "9")
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    manifest["source"] = None
    (folder / "run" / "manifest.json").write_text(json.dumps(manifest))
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
