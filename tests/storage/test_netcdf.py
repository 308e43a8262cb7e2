"""NetCDF files: identical after a round trip, and whole or not at all."""

import errno
import json
import os
import signal

import numpy as np
import pytest
import xarray

from whence.storage import SCHEMA_VERSION, load_netcdf, save_netcdf, to_datatree


def example(rng, draws=20):
    n = lambda *shape: rng.normal(size=(2, draws, *shape))
    groups = {
        "posterior": {
            "mu": n(),
            "single": n(3).astype(np.float32),
            "net.weight": n(2, 3),
            "nothing": n(0),
            "holes": np.where(n() > 1, np.nan, np.inf),
        },
        "sample_stats": {
            "diverging": n() > 1,
            "n_steps": rng.integers(0, 9, (2, draws)).astype(np.int32),
        },
        "observed_data": {
            "y": rng.normal(size=4),
            "count": np.array([1, 2, 3, 2**60], np.int64),
            "flag": np.array([True, False, True, True]),
            "name": np.array(["a", "ß", "", "long name"]),
            "scalar": np.array(3.5),
        },
        "constant_data": {"when": np.array(["2020-01-01", "2021-06-30"], "datetime64[ns]")},
    }
    dims = {"y": ("school",), "count": ("school",), "single": ("mixed",)}
    coords = {
        "school": np.array(["A", "B é", "C", "D"], object),
        "mixed": [1, "two", (3, 3)],
        "net.weight_dim_0": [10.5, 11.5],
    }
    attrs = {
        "manifest": {"versions": {"jax": "0.12"}, "seed": [1, 2], "none": None},
        "text": "naïve",
        "number": 3,
        "fraction": 0.1,
        "yes": True,
        "array": np.arange(3),
    }
    return to_datatree(groups, dims, coords, attrs, log_weights=n())


@pytest.fixture
def tree():
    return example(np.random.default_rng(20261120))


def test_round_trip_is_identical(tree, tmp_path):
    path = save_netcdf(tree, tmp_path / "a.nc")
    loaded = load_netcdf(path)
    assert loaded.attrs.pop("array") == [0, 1, 2]
    tree.attrs.pop("array")
    xarray.testing.assert_identical(loaded, tree)
    for node in tree.subtree:
        for name, variable in node.variables.items():
            again = loaded[node.path].variables[name]
            assert again.dtype.kind.replace("O", "U") == variable.dtype.kind
            if variable.dtype.kind != "U":
                assert again.dtype == variable.dtype
    assert type(loaded.attrs["number"]) is int
    assert loaded.attrs["yes"] is True


def test_loaded_tree_is_in_memory_and_can_be_saved_again(tree, tmp_path):
    path = save_netcdf(tree, tmp_path / "a.nc")
    loaded = load_netcdf(path)
    save_netcdf(loaded, path)  # over the file it came from
    again = load_netcdf(path)
    path.unlink()
    xarray.testing.assert_identical(again, loaded)


def test_xarray_reads_it_unaided(tree, tmp_path):
    path = save_netcdf(tree, tmp_path / "a.nc")
    with xarray.open_datatree(path) as theirs:  # which is what `arviz.from_netcdf` is
        np.testing.assert_array_equal(theirs.posterior.mu, tree.posterior.mu)
        assert theirs.sample_stats.diverging.dtype == bool


def test_long_attributes(tmp_path):
    """HDF5 keeps attributes below 64 KiB in a header; longer ones must survive too."""
    tree = to_datatree(
        {"posterior": {"mu": np.zeros((1, 2))}},
        attrs={"text": "x" * 300_000, "numbers": list(range(50_000))},
    )
    loaded = load_netcdf(save_netcdf(tree, tmp_path / "a.nc"))
    assert loaded.attrs == tree.attrs


def test_file_replaces_the_old_one_and_keeps_its_permissions(tree, tmp_path):
    path = tmp_path / "a.nc"
    save_netcdf(to_datatree({"posterior": {"mu": np.zeros((1, 2))}}), path)
    path.chmod(0o640)
    save_netcdf(tree, path)
    assert "sample_stats" in load_netcdf(path).children
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a.nc"]


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize("function", ["replace", "fsync", "fdopen", "chmod"])
def test_failure_leaves_the_earlier_file(tree, tmp_path, monkeypatch, function):
    path = tmp_path / "a.nc"
    old = to_datatree({"posterior": {"mu": np.zeros((1, 2))}})
    save_netcdf(old, path)
    before = path.read_bytes()
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(os, function, failing(error))
        with pytest.raises(OSError, match="No space left on device.*unchanged") as caught:
            save_netcdf(tree, path)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nc"]


def test_interrupt_leaves_the_earlier_file(tree, tmp_path, monkeypatch):
    path = tmp_path / "a.nc"
    save_netcdf(tree, path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            save_netcdf(tree, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nc"]


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits on file sizes")
def test_a_file_that_cannot_grow(tree, tmp_path):
    """The real thing, by a limit on file sizes: HDF5 itself would crash the process."""
    import resource

    path = save_netcdf(tree, tmp_path / "a.nc")
    before = path.read_bytes()
    big = to_datatree({"posterior": {"mu": np.full((4, 1000, 100), 0.5)}})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_netcdf(big, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nc"]


def test_bad_places(tree, tmp_path):
    with pytest.raises(FileNotFoundError, match="existing folder"):
        save_netcdf(tree, tmp_path / "no" / "a.nc")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        save_netcdf(tree, tmp_path)
    with pytest.raises(FileNotFoundError, match="existing file"):
        load_netcdf(tmp_path / "none.nc")


def test_unwritable_folder(tree, tmp_path, monkeypatch):
    import tempfile

    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(tempfile, "mkstemp", failing(denied))
    with pytest.raises(PermissionError, match="Permission denied"):
        save_netcdf(tree, tmp_path / "a.nc")


def test_files_that_are_not_ours(tree, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("hello")
    with pytest.raises(ValueError, match="cannot be read"):
        load_netcdf(text)
    (tmp_path / "empty.nc").touch()
    with pytest.raises(ValueError, match="cannot be read"):
        load_netcdf(tmp_path / "empty.nc")
    whole = save_netcdf(tree, tmp_path / "a.nc").read_bytes()
    (tmp_path / "half.nc").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load_netcdf(tmp_path / "half.nc")
    other = xarray.Dataset({"x": ("t", np.zeros(3))})
    other.to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="must be a file that this library wrote"):
        load_netcdf(tmp_path / "other.nc")


def test_absurd_sizes_are_refused_before_memory_is_taken(tree, tmp_path):
    import h5py

    path = save_netcdf(tree, tmp_path / "a.nc")
    with h5py.File(path, "r+") as file:
        file["posterior"].create_dataset("big", (10**13,), "f8", chunks=(10,))
    with pytest.raises(ValueError, match=r"says that it holds 8e\+13 bytes"):
        load_netcdf(path)


def test_newer_schema_is_refused(tree, tmp_path, monkeypatch):
    from whence.storage import _encoding

    monkeypatch.setattr(_encoding, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    path = save_netcdf(tree, tmp_path / "a.nc")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"schema version {SCHEMA_VERSION + 1}"):
        load_netcdf(path)


def test_what_cannot_be_stored_is_named(tmp_path):
    complex_values = to_datatree({"posterior": {"z": np.zeros((1, 2), complex)}})
    with pytest.raises(ValueError, match="'z' in /posterior must be of numbers"):
        save_netcdf(complex_values, tmp_path / "a.nc")
    objects = to_datatree({"observed_data": {"o": np.array([{1}, None], object)}})
    with pytest.raises(ValueError, match="'o' in /observed_data"):
        save_netcdf(objects, tmp_path / "a.nc")
    function = to_datatree({"posterior": {"a": np.zeros((1, 2))}}, attrs={"f": print})
    with pytest.raises(ValueError, match="JSON can hold"):
        save_netcdf(function, tmp_path / "a.nc")
    assert os.listdir(tmp_path) == []


def test_attributes_are_json_not_pickle(tree, tmp_path):
    path = save_netcdf(tree, tmp_path / "a.nc")
    with xarray.open_datatree(path, engine="h5netcdf") as raw:
        assert json.loads(raw.attrs["manifest"])["seed"] == [1, 2]
    assert b"cnumpy" not in path.read_bytes()
