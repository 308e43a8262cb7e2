"""Zarr folders: the same tree back, and whole or not at all."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray

from whence.storage import SCHEMA_VERSION, _zarr, load_zarr, save_zarr, to_datatree
from whence.storage._zarr import check_destination


@pytest.fixture
def tree():
    rng = np.random.default_rng(20261120)
    groups = {
        "posterior": {
            "mu": rng.normal(size=(2, 20)),
            "single": rng.normal(size=(2, 20, 3)).astype(np.float32),
            "nothing": rng.normal(size=(2, 20, 0)),
        },
        "sample_stats": {"diverging": rng.normal(size=(2, 20)) > 1},
        "observed_data": {
            "y": np.array([1.5, np.nan, np.inf]),
            "name": np.array(["a", "ß", "a long name"]),
            "when": np.array(["2020-01-01", "2021-06-30"], "datetime64[ns]"),
        },
    }
    dims = {"y": ("school",), "name": ("school",)}
    attrs = {"manifest": {"versions": {"jax": "0.12"}, "none": None}, "number": 3}
    return to_datatree(groups, dims, {"school": ["A", "B é", "C"]}, attrs)


def test_round_trip(tree, tmp_path):
    path = tmp_path / "a.zarr"
    assert save_zarr(tree, path) == path
    loaded = load_zarr(path)
    assert set(loaded.children) == set(tree.children)
    for node in tree.subtree:
        other = loaded[node.path]
        assert other.attrs == node.attrs
        xarray.testing.assert_identical(
            other.to_dataset(inherit=False), node.to_dataset(inherit=False)
        )
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_replaces_the_old_one(tree, tmp_path):
    path = tmp_path / "a.zarr"
    save_zarr(tree, path)
    tree["posterior"]["mu"] = tree["posterior"]["mu"] + 1.0
    save_zarr(tree, path)
    np.testing.assert_array_equal(
        load_zarr(path)["posterior"]["mu"].values, tree["posterior"]["mu"].values
    )
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_a_full_disk_leaves_the_earlier_folder(tree, tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    save_zarr(tree, path)
    before = load_zarr(path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(xarray.DataTree, "to_zarr", full)
    with pytest.raises(OSError, match="No space left.*unchanged"):
        save_zarr(tree, path)
    monkeypatch.undo()
    assert load_zarr(path).identical(before)
    assert os.listdir(tmp_path) == ["a.zarr"]


DYING = """  # where the new folder would be put in place
import os, sys
from whence.storage import _zarr
path, swap = sys.argv[1], sys.argv[2] == "True"
tree, real = _zarr.load_zarr(path), os.replace
os.replace = lambda a, b: real(a, b) or os._exit(9)
_zarr.seal_folder = lambda folder: swap and os._exit(9)
if not swap:
    _zarr._swap = lambda a, b: False
_zarr.save_zarr(tree, path)
"""


@pytest.mark.parametrize("swap", [True, False])
def test_the_old_folder_survives_whatever_fails(
    tree, tmp_path, monkeypatch, swap, storage_process
):
    """The renaming fails, or the process is killed before it or between two."""
    path = tmp_path / "a.zarr"
    save_zarr(tree, path)
    before, real = load_zarr(path), os.replace
    if not swap:
        monkeypatch.setattr(_zarr, "_swap", lambda a, b: False)

    def failing(source, to):
        if Path(to) == path and Path(source).name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(source, to)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        if not swap:
            with pytest.raises(OSError, match="Input/output error.*unchanged"):
                save_zarr(tree, path)
    assert load_zarr(path).identical(before)
    assert os.listdir(tmp_path) == ["a.zarr"]

    done = subprocess.run(storage_process(DYING, path, swap), check=False)
    assert done.returncode == 9
    assert len(os.listdir(tmp_path)) > 1
    assert load_zarr(path).identical(before)
    save_zarr(tree, path)
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_replaces_only_what_it_wrote_and_no_link(tree, tmp_path):
    (tmp_path / "there").mkdir()
    path = tmp_path / "a.zarr"
    path.symlink_to(tmp_path / "there" / "b.zarr")
    save_zarr(tree, path)
    save_zarr(tree, path)
    assert path.is_symlink()
    assert load_zarr(tmp_path / "there" / "b.zarr").identical(load_zarr(path))
    (path / "notes.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="'notes.txt' in it is another's"):
        save_zarr(tree, path)
    theirs = tmp_path / "c.zarr"
    xarray.Dataset({"x": ("t", np.zeros(3))}).to_zarr(theirs, zarr_format=2)
    for check in (lambda: save_zarr(tree, theirs), lambda: check_destination(theirs)):
        with pytest.raises(FileExistsError, match="that this library wrote"):
            check()
    assert (path / "notes.txt").read_text() == "precious"
    assert (theirs / "x").is_dir()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]}, "codec 'pickle'"),
        ({"compressor": {"id": "pickle"}}, "codec 'pickle'"),
        ({"compressor": {"id": "json2"}}, "codec 'json2'"),
        ({"dtype": "|O"}, "holds objects"),
        ({"shape": [2, 10**13], "chunks": [2, 10**13]}, r"1\.6e\+14 bytes"),
        ({"chunks": [2, 10**13]}, r"1\.6e\+14 bytes"),
        ({"shape": [2, -(10**13)]}, "negative"),
        ({"compressor": 3}, "not as this library writes it"),
    ],
)
@pytest.mark.parametrize("where", [".zarray", ".zmetadata"])
def test_metadata_are_not_believed(tree, tmp_path, changes, words, where):
    path = save_zarr(tree, tmp_path / "a.zarr")
    (path / ".whence-sha256.json").unlink()  # whoever changes a folder makes a new list
    file = path / where if where == ".zmetadata" else path / "posterior" / "mu" / where
    content = json.loads(file.read_text())
    array = content["metadata"]["posterior/mu/.zarray"] if where == ".zmetadata" else content
    array.update(changes)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        load_zarr(path)


def test_refuses(tree, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="existing folder"):
        save_zarr(tree, tmp_path / "no" / "a.zarr")
    (tmp_path / "file.zarr").write_text("precious")
    with pytest.raises(FileExistsError, match="something else"):
        save_zarr(tree, tmp_path / "file.zarr")
    with pytest.raises(FileNotFoundError, match="existing zarr folder"):
        load_zarr(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        load_zarr(tmp_path / "empty.zarr")
    from whence.storage import _encoding

    save_zarr(tree, tmp_path / "a.zarr")
    monkeypatch.setattr(_encoding, "SCHEMA_VERSION", SCHEMA_VERSION - 1)
    with pytest.raises(ValueError, match="Update whence"):
        load_zarr(tmp_path / "a.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"whence\[zarr\]"):
        save_zarr(tree, tmp_path / "b.zarr")
