"""Zarr folders: the same tree back, and whole or not at all."""

import errno
import os
import sys

import numpy as np
import pytest
import xarray

from whence.storage import SCHEMA_VERSION, load_zarr, save_zarr, to_datatree


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
