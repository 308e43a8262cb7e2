"""Stores of runs: one writer, whole manifests, nothing believed before it is looked at."""

import hashlib
import json
import os
import subprocess

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from whence.storage import RunStore
from whence.storage._atomic import replace_file, scratch
from whence.storage._npz import packed, unpacked


def _write(store, start, stop, replica=0):
    store.write(replica, start, np.array(stop), [np.arange(start, stop)], [np.zeros(2)])


@pytest.fixture
def store(tmp_path):
    RunStore.create(tmp_path / "run", {"number": 0.1, "list": [None, "ß"]}).release()
    return RunStore.open(tmp_path / "run")


def test_the_second_writer_is_refused(store):
    other = RunStore.open(store.folder)
    _write(store, 0, 10)
    before = sorted(p.name for p in store.folder.rglob("*"))
    for refused in (
        lambda: _write(other, 10, 17),
        lambda: other.discard_after(0, 0),
        other.write_manifest,
        other.lock,
    ):
        with pytest.raises(BlockingIOError, match=f"being written by process {os.getpid()} on"):
            refused()
    assert sorted(p.name for p in store.folder.rglob("*")) == before
    store.release()
    with pytest.raises(ValueError, match="has ended"):
        _write(store, 10, 20)  # a thread that is late
    _write(other, 10, 17)
    assert_array_equal(np.concatenate([r[0] for _, r in other.chunks(0, 17)]), np.arange(17))


def test_one_that_was_opened_before_another_went_on_must_be_opened_again(store):
    other = RunStore.open(store.folder)
    store.manifest["number"] = 2
    store.write_manifest()
    with pytest.raises(ValueError, match="went on with the run"):
        other.lock()
    assert not (store.folder / "lock").exists()


KILLED = """
import os, sys, time
import numpy as np
from whence.storage import RunStore, save_netcdf, save_zarr, to_datatree, _atomic
what, path = sys.argv[1:]
os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
os.replace = lambda a, b: os.kill(os.getpid(), 9)
if what == "store":
    RunStore.open(path).write(0, 10, np.array(20), [np.zeros(10)], [np.zeros(2)])
elif what == "create":
    RunStore.create(path, {})
else:  # xarray takes seconds to import
    tree = to_datatree({"posterior": {"mu": np.ones((1, 3))}})
    save_netcdf(tree, path) if what == "netcdf" else save_zarr(tree, path)
"""


def test_a_killed_writer_leaves_nothing_to_the_next(store, tmp_path, storage_process):
    from whence.storage import load_netcdf, save_netcdf, to_datatree

    def killed(what, path):
        done = subprocess.run(storage_process(KILLED, what, path), check=False)
        assert done.returncode == -9

    _write(store, 0, 10)
    store.release()
    killed("store", store.folder)
    assert (store.folder / "lock").exists()
    assert len(list(store.folder.rglob(".*.tmp"))) == 1
    mine = store.folder / ".notes.tmp"
    mine.touch()
    again = RunStore.open(store.folder)
    _write(again, 10, 20)
    assert list(store.folder.rglob(".*.tmp")) == [mine]
    killed("create", tmp_path / "new")
    RunStore.create(tmp_path / "new", {}).release()  # empty but for what was left
    assert os.listdir(tmp_path / "new") == ["manifest.json"]

    path, tree = tmp_path / "a.nc", to_datatree({"posterior": {"mu": np.zeros((1, 3))}})
    killed("netcdf", path)
    notes = tmp_path / ".a.nc.tmp"
    notes.touch()
    with scratch(path) as (_, alive):  # of a writer that is at work
        save_netcdf(tree, path)
        assert {p.name for p in tmp_path.glob(".a.nc*")} == {notes.name, alive.name}
    assert load_netcdf(path).identical(tree)


def test_chunks_that_overlap_are_read_once_and_left_ones_are_discarded(store):
    _write(store, 0, 15)  # and killed: this chunk is left by a run with another length
    (store.folder / "replica-0000" / "state.npz").unlink()
    _write(store, 0, 20)
    _write(store, 20, 30)
    parts = {s: r[0] for s, r in store.chunks(0, 30)}
    assert sorted(set(np.concatenate(list(parts.values())))) == list(range(30))
    store.discard_after(0, 0)
    assert not list(store.folder.rglob("*-*.npz"))


def test_the_manifest_has_a_checksum(store):
    path = store.folder / "manifest.json"
    text = path.read_text()
    assert RunStore.open(store.folder).manifest == store.manifest
    for changed in (
        text.replace("0.1", "0.2"),
        text.replace('"number"', '"numbex"'),
        text.replace('"sha256"', '"sha255"'),
        text.replace("null", "true"),
        text[:-9],
        "[]",
        "[" * 100_000,
    ):
        assert changed != text
        path.write_text(changed)
        with pytest.raises(ValueError, match=r"manifest.json of .*run is damaged"):
            RunStore.open(store.folder)
    with path.open("r+b") as file:
        file.truncate(2**27)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"damaged.*1\.34e\+08 bytes"):
        RunStore.open(store.folder)
    # One from before manifests had a sum.
    path.write_text(json.dumps({"schema": 1, "a": 2}))
    assert RunStore.open(store.folder).manifest["a"] == 2


def test_copies_of_files_beside_them_are_not_read_and_lost_ones_can_be_made_again(store):
    """As cloud folders make them of files that two computers changed."""
    _write(store, 0, 10)
    folder = store.folder / "replica-0000"
    (folder / "0-10 (copy).npz").touch()
    (store.folder / "replica-0000 copy").mkdir()
    (store.folder / "replica-0000 copy" / "state.npz").touch()
    assert store.replicas() == [0]
    assert len(list(store.chunks(0, 10))) == 1
    (folder / "state.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Or remove .*replica-0000: `whence.resume` then"):
        store.state(0)
    with pytest.raises(ValueError, match=r"steps from 10 to 20: .* Or remove .*replica-0000"):
        store.chunks(0, 20)


def test_a_store_stays_where_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="cannot be written.*choose another folder"):
        RunStore.create("file", {})
    with pytest.raises(ValueError, match="`store` must be a path without null characters"):
        RunStore.create("a\0b", {})
    store = RunStore.create("run", {})
    monkeypatch.chdir("/")
    _write(store, 0, 10)
    assert len(list(store.chunks(0, 10))) == 1


def test_names_of_unfinished_files_fit_into_a_folder_and_are_those_of_one_file(tmp_path):
    path = tmp_path / ("文" * 84)  # 252 bytes of the 255 that file systems allow
    replace_file(path, b"1")
    with scratch(path) as (_, left), scratch(tmp_path / ("文" * 83)) as (_, other):
        mark = lambda file: file.name.rpartition(".whence-")[0]
        assert mark(left) != mark(other)
    assert os.listdir(tmp_path) == [path.name]


def _npz_that_says(shape, content=b"", dtype="<f8"):
    header = str({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    header = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    return header + content


def test_absurd_and_dangerous_arrays_are_refused_before_memory_is_taken(tmp_path):
    import zipfile

    path = tmp_path / "a.npz"
    whole = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True]), "none": np.zeros((0, 2))}
    path.write_bytes(packed(whole))
    for name, array in unpacked(path).items():
        assert_array_equal(array, whole[name])
    with pytest.raises(ValueError, match="Object arrays"):
        packed({"o": np.array([{}], object)})
    for entry, words in (
        (_npz_that_says((10**13,), b"0" * 8), r"shape \(10000000000000,\)"),
        (_npz_that_says((1,), b"0" * 8, "|O"), "holds objects"),
        (_npz_that_says((2,), b"0" * 8), "should have shape"),
    ):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.npy", entry)
        with pytest.raises(ValueError, match=words):
            unpacked(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(10**6))
    with pytest.raises(ValueError, match="compressed"):
        unpacked(path)
    path.write_text("notes")
    with pytest.raises(ValueError, match="damaged, or not of whence"):
        unpacked(path)


def test_links_and_home_and_devices(tmp_path, monkeypatch):
    from whence.storage import as_path
    from whence.storage._atomic import place

    monkeypatch.setenv("HOME", str(tmp_path))
    RunStore.create("~/run", {}).release()
    assert RunStore.open("~/run").folder == tmp_path / "run"
    with pytest.raises(ValueError, match="`path` must be a path; got '~nobody_at_all/x'"):
        as_path("~nobody_at_all/x")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(FileExistsError, match="something else"):
        place(tmp_path / "circle")
    with pytest.raises(FileNotFoundError, match=r"no/\.\. is not one"):
        place(tmp_path / "no" / ".." / "a.nc")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "a")
    replace_file(place(tmp_path / "link"), b"1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").read_bytes() == b"1"
    if os.path.exists("/dev/null"):
        with pytest.raises(FileExistsError, match="something else"):
            place("/dev/null")
    if os.path.isdir("/proc/self"):
        with pytest.raises(OSError, match="must be in a folder that can be written"):
            place("/proc/self/a.nc")


def test_sums_are_of_the_content(store):
    content = json.loads((store.folder / "manifest.json").read_text())
    said = content.pop("sha256")
    plain = json.dumps(content, sort_keys=True).encode()
    assert said == hashlib.sha256(plain).hexdigest()
