"""Independent fits in threads and in other processes: the same draws as one after another."""

import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import whence as wh
from whence.calibration import _fits
from whence.cli._eight_schools import EightSchools
from whence.running import _many
from whence.running._executor import run_all
from whence.studies import Request

SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
ENGINE = wh.SGLD(steps=12, step_size=1e-2, warmup=0, chains=1)
CALIBRATION = {"key": 3, "simulations": 10, "num_draws": 5}


class Other:
    """What has an executor's `submit` and is none of the standard library's."""

    def __init__(self, executor):
        self.submit = executor.submit


@pytest.fixture(scope="module")
def executors():
    """One process started afresh, as on another machine, and two threads."""
    spawn = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(2) as threads, ProcessPoolExecutor(1, spawn) as processes:
        yield {"threads": threads, "processes": processes, "other": Other(processes)}


def _is_same(found, alone, targets):
    assert list(found) == [0, 1]
    for name, posterior in found.items():
        assert posterior.target is targets[name]
        assert posterior["theta"].dtype == np.float64
        assert_array_equal(posterior["theta"], alone[name]["theta"])
        assert list(posterior.dt["posterior"]["school"].values) == list("abcdefgh")


@pytest.fixture(scope="module")
def targets():
    model = EightSchools(coords={"school": list("abcdefgh")})
    return {n: wh.condition(model, SIGMA * n, SIGMA, dims="school") for n in (0, 1)}


@pytest.fixture(scope="module")
def alone(targets):
    return wh.infer_many(targets, ENGINE, key=5, throw=False)


@pytest.mark.parametrize("kind", ["threads", "processes", "other"])
def test_wherever_a_fit_runs_its_draws_are_the_same(executors, targets, alone, kind):
    options = {"executor": executors[kind], "throw": False, "threads": 1}
    _is_same(wh.infer_many(targets, ENGINE, key=5, **options), alone, targets)
    direct = wh.infer(targets[1], ENGINE, key=jax.random.fold_in(jax.random.key(5), 1))
    assert_array_equal(direct["theta"], alone[1]["theta"])


@pytest.mark.slow
def test_a_cluster_of_dask(targets, alone):
    """Fits and calibration; skipped without the extra `dask`."""
    distributed = pytest.importorskip("distributed")
    how = {"n_workers": 1, "threads_per_worker": 1, "processes": True}
    cluster = distributed.LocalCluster(dashboard_address=None, **how)
    with cluster, distributed.Client(cluster) as client:
        executor = client.get_executor()
        found = wh.infer_many(targets, ENGINE, key=5, executor=executor, throw=False)
        ranks = wh.sbc(targets[0], ENGINE, executor=executor, **CALIBRATION).ranks
    _is_same(found, alone, targets)
    here = wh.sbc(targets[0], ENGINE, vectorised=False, **CALIBRATION)
    jax.tree.map(assert_array_equal, ranks, here.ranks)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_calibration_in_an_executor(executors, targets, kind):
    here = wh.sbc(targets[0], ENGINE, vectorised=False, **CALIBRATION)
    there = wh.sbc(targets[0], ENGINE, executor=executors[kind], **CALIBRATION)
    jax.tree.map(assert_array_equal, there.ranks, here.ranks)


@pytest.mark.parametrize("stop", [8, 13])
def test_ctrl_c_keeps_the_fits_of_a_calibration(targets, monkeypatch, stop):
    how = CALIBRATION | {"simulations": 16}
    whole = wh.sbc(targets[0], ENGINE, vectorised=False, **how)
    calls, infer = [], _fits.infer

    def interrupted(*args, **kwargs):
        calls.append(None)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return infer(*args, **kwargs)

    monkeypatch.setattr(_fits, "infer", interrupted)
    with ThreadPoolExecutor(1) as executor:
        if stop < 10:
            with pytest.raises(KeyboardInterrupt, match="after 8 of 16 fits"):
                wh.sbc(targets[0], ENGINE, executor=executor, **how)
            return
        with pytest.warns(wh.InferenceWarning, match="in the first 13 of 16 fits"):
            part = wh.sbc(targets[0], ENGINE, executor=executor, **how)
    assert part.num_simulations == 13
    jax.tree.map(lambda a, b: assert_array_equal(a, b[:13]), part.ranks, whole.ranks)


@pytest.mark.parametrize("where", ["here", "threads"])
def test_ctrl_c_keeps_the_fits_made(executors, targets, alone, monkeypatch, where):
    fit = _many._fit

    def interrupted(target, *rest):
        if target is targets[1]:
            raise KeyboardInterrupt
        return fit(target, *rest)

    monkeypatch.setattr(_many, "_fit", interrupted)
    how = {"key": 5, "throw": False, "executor": executors.get(where)}
    with pytest.warns(wh.InferenceWarning, match="of 1 of 2 targets"):
        found = wh.infer_many(list(targets.values()), ENGINE, **how)
    assert len(found) == 1
    assert_array_equal(found[0]["theta"], alone[0]["theta"])
    with pytest.raises(KeyboardInterrupt):
        wh.infer_many({1: targets[1]}, ENGINE, **how)


def test_parts_of_studies_in_an_executor(executors, tmp_path):
    for executor in (None, *executors.values()):
        request = Request(tmp_path, None, "small", 0, print, executor)
        assert request.map(divmod, [(7, 2), (9, 4)]) == [(3, 1), (2, 1)]
    with pytest.raises(ZeroDivisionError):
        request.map(divmod, [(7, 2), (9, 0)])


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_warnings_arrive_where_they_are_read(executors, kind):
    with pytest.warns(wh.InferenceWarning, match="look out"):
        run_all(executors[kind], warnings.warn, [("look out", wh.InferenceWarning)])


def test_what_cannot_be_is_refused_before_anything_runs(targets):
    with pytest.raises(ValueError, match="`executor` must be a `concurrent.futures.Executor`"):
        wh.infer_many(targets, ENGINE, key=0, executor=4)
    with pytest.raises(ValueError, match="`executor` must be a `concurrent.futures.Executor`"):
        wh.sbc(targets[0], ENGINE, key=0, executor=4)
    with pytest.raises(ValueError, match="`options` must be among .*; got 'store'"):
        wh.infer_many(targets, ENGINE, key=0, store="a")
    with pytest.raises(ValueError, match="`target` must be a whence target"):
        wh.infer_many([targets[0], 1], ENGINE, key=0)
