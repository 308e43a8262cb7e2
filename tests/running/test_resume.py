"""Runs on disk: resumed equals uninterrupted, whatever killed it; damage is named."""

import os
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpy.testing import assert_array_equal

import whence as wh
from whence.running._manifest import create_store
from whence.running._worker import Worker
from whence.storage import RunStore, _runstore

KILLS = int(os.environ.get("WHENCE_KILLS", "6"))  # in all, over the engines below


class Line(wh.Model):
    slope: Any = wh.latent(dist.Normal(0.0, 1.0))
    sigma: Any = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self, x):
        return dist.Normal(self.slope * x, self.sigma)


X = np.linspace(0.0, 1.0, 20)
TARGET_ARGS = (0.7 * X + 0.1 * np.cos(40 * X), X)
ENGINES = {
    "nuts": wh.NUTS(chains=2, warmup=60, draws=60),
    "hmc": wh.HMC(chains=2, warmup=60, draws=60),
    "chees": wh.ChEES(chains=8, warmup=60, draws=60),
    "mclmc": wh.MCLMC(chains=2, warmup=60, draws=60),
    "sgld": wh.SGLD(chains=2, steps=400, warmup=100, step_size=1e-3, batch_size=5, thin=4),
    "bbvi": wh.BBVI(family=wh.FullRank(), steps=400, draws=100),
    "smc": wh.TemperedSMC(particles=100),
    "numpyro": wh.NUTS(backend="numpyro", chains=2, warmup=60, draws=60),
    "blackjax": wh.NUTS(backend="blackjax", chains=2, warmup=60, draws=60),
    "tfp": wh.NUTS(backend="tfp", chains=2, warmup=60, draws=60, max_tree_depth=5),
}


@pytest.fixture
def target():
    return wh.condition(Line(), *TARGET_ARGS)


class Stopped(Exception):
    """What the tests raise in a worker in place of a crash."""


def _stop_after(monkeypatch, calls):
    made, advance = [], Worker.advance

    def counted(self, stop):
        if len(made) >= calls:
            raise Stopped
        made.append(stop)
        return advance(self, stop)

    monkeypatch.setattr(Worker, "advance", counted)


# The conformance suite stops and resumes every engine of ours once more.
OFTEN = ("nuts", "sgld", "bbvi", "smc", "numpyro", "blackjax")


@pytest.mark.parametrize(
    "name",
    [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in ENGINES],
)
def test_resumed_equals_uninterrupted(name, target, tmp_path):
    """Stopped during warm-up and again during sampling, for every engine."""
    engine, key = ENGINES[name], jr.key(11)
    size = 2 if name in ("smc", "bbvi") else 17  # these make few steps
    whole = wh.infer(target, engine, key=key, chunk_steps=size)
    folder = tmp_path / "run"
    begin = lambda: wh.infer(target, engine, key=key, chunk_steps=size, store=folder, threads=1)
    go_on = lambda: wh.resume(folder, target, chunk_steps=size, threads=1)
    for work, calls in ((begin, 1), (go_on, 1 if name == "smc" else 4)):
        with pytest.MonkeyPatch.context() as patch:
            _stop_after(patch, calls)
            with pytest.raises(Stopped):
                work()
    again = wh.resume(folder, target, chunk_steps=size)
    assert again.complete
    for variable in whole:
        assert_array_equal(again[variable], whole[variable])
    for stat in whole.stats:
        assert_array_equal(again.stats[stat], whole.stats[stat])
    third = wh.resume(folder, target)  # complete: read, not run
    assert_array_equal(third["slope"], whole["slope"])


def test_another_chunk_size_on_resuming(target, tmp_path, monkeypatch):
    engine, key = ENGINES["nuts"], jr.key(11)
    whole = wh.infer(target, engine, key=key)
    with monkeypatch.context() as patch:
        _stop_after(patch, 3)
        with pytest.raises(Stopped):
            wh.infer(target, engine, key=key, chunk_steps=13, store=tmp_path / "a", threads=1)
    again = wh.resume(tmp_path / "a", target, chunk_steps=29)
    assert_array_equal(again["slope"], whole["slope"])


@pytest.mark.parametrize("name", ["nuts", "bbvi"])
def test_killed_between_the_first_chunk_and_the_first_state(
    name, target, tmp_path, monkeypatch
):
    """What is left has another length than what is made; the lock of the dead is gone."""
    engine, key, folder = ENGINES[name], jr.key(11), tmp_path / "a"
    whole = wh.infer(target, engine, key=key, chunk_steps=17)
    real = _runstore.replace_file

    def dies(path, content):
        if path.name == "state.npz":
            raise Stopped
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(_runstore, "replace_file", dies)
        with pytest.raises(Stopped):
            wh.infer(target, engine, key=key, chunk_steps=5, store=folder, threads=1)
    assert list(folder.glob("replica-0000/*-000000000005.npz"))
    again = wh.resume(folder, target, chunk_steps=17)
    assert_array_equal(again["slope"], whole["slope"])
    assert_array_equal(wh.load(folder, target=target)["slope"], whole["slope"])
    assert not (folder / "lock").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("key", None, "`key` must be of type list"),
        ("key", [1, 2, 3, "x"], "`key` is none of"),
        ("steps", True, "`steps` must be of type int; got True"),
        ("steps", 10**15, "`steps` must be from 1 to"),
        ("vectorised", 1, "`vectorised` must be of type bool"),
        ("versions", [], "`versions` must be of type dict"),
        ("until", "soon", "`until` must be of type dict"),
        ("configuration", {"class": "whence.nothing:Engine", "fields": {}}, "`engine` must be"),
        ("configuration", {"class": "whence:NUTS"}, "`engine` must be given"),
    ],
)
def test_entries_of_a_manifest_are_checked_by_name(name, value, words, target, tmp_path):
    store = create_store(
        tmp_path / "a", target, ENGINES["nuts"], jr.key(1), {"vectorised": False}
    )
    store.manifest[name] = value
    store.write_manifest()
    store.release()
    with pytest.raises(ValueError, match=words):
        wh.resume(tmp_path / "a", target)
    with pytest.raises(ValueError, match=words):
        wh.load(tmp_path / "a", target=target)


def test_what_cannot_fit_into_memory_is_refused_before_it_is_taken(target, tmp_path):
    for chains, words in (
        (2**31, "fewer than 2147483648 replicas"),
        (2**30, "fit into memory"),
    ):
        with pytest.raises(ValueError, match=words):
            wh.infer(target, wh.NUTS(chains=chains, draws=2, warmup=2), key=jr.key(0))


SERVER = """
import os, random, signal, sys, time, hashlib, warnings
warnings.simplefilter("ignore")
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np, numpyro.distributions as dist
import whence as wh

# Imports are done and no JAX backend is started: children are forked from here.
folder, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random.seed(seed)

class Line(wh.Model):
    slope: object = wh.latent(dist.Normal(0.0, 1.0))
    sigma: object = wh.latent(dist.HalfNormal(1.0))
    def likelihood(self, x):
        return dist.Normal(self.slope * x, self.sigma)

x = np.linspace(0.0, 1.0, 20)
engines = {
    "nuts": lambda: wh.NUTS(chains=2, warmup=300, draws=1200),
    "sgld": lambda: wh.SGLD(chains=2, steps=40_000, warmup=1000, step_size=1e-3, thin=20),
    "smc": lambda: wh.TemperedSMC(particles=500),
}

def child(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid

def fit(name, store):
    target = wh.condition(Line(), 0.7 * x, x)
    if store and os.path.exists(os.path.join(store, "manifest.json")):
        p = wh.resume(store, target, chunk_steps=15, progress=False)
    else:
        p = wh.infer(target, engines[name](), key=jax.random.key(3), chunk_steps=15,
                     store=store, progress=False)
    digest = hashlib.sha256(p["slope"].tobytes() + p["sigma"].tobytes()).hexdigest()
    with open(os.path.join(folder, name + (".stored" if store else ".whole")), "w") as f:
        f.write(digest)

survived = 0
for name in engines:
    start = time.time()
    assert os.waitpid(child(lambda: fit(name, None)), 0)[1] == 0
    whole = time.time() - start
    store = os.path.join(folder, "store_" + name)
    for i in range(kills):
        pid = child(lambda: fit(name, store))
        time.sleep(random.uniform(0.2, 1.0) * whole)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert os.waitpid(child(lambda: fit(name, store)), 0)[1] == 0
    a, b = (open(os.path.join(folder, name + end)).read() for end in (".whole", ".stored"))
    assert a == b, name
    print("same", name, len(os.listdir(store)), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sigkill_at_random_moments(tmp_path):
    """Killed again and again, then completed: the same draws to the last bit."""
    environment = dict(os.environ, WHENCE_CACHE=str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(tmp_path), str(-(-KILLS // 3)), "20261120"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same") == 3


def _stored(target, folder):
    return wh.infer(target, ENGINES["nuts"], key=jr.key(1), chunk_steps=40, store=folder)


def test_refuses_what_does_not_belong(target, tmp_path):
    _stored(target, tmp_path / "a")
    with pytest.raises(ValueError, match="new or empty"):
        _stored(target, tmp_path / "a")
    other = wh.condition(Line(), TARGET_ARGS[0] + 1.0, X)
    with pytest.raises(ValueError, match="`target`"):
        wh.resume(tmp_path / "a", other)
    with pytest.raises(ValueError, match="`engine`"):
        wh.resume(tmp_path / "a", target, engine=wh.NUTS(draws=7))
    with pytest.raises(ValueError, match="not a run store"):
        wh.resume(tmp_path, target)
    with jax.enable_x64(False), pytest.raises(ValueError, match="float64|differ"):
        wh.resume(tmp_path / "a", target)


def test_newer_schema_and_damaged_manifest(target, tmp_path):
    _stored(target, tmp_path / "a")
    store = RunStore.open(tmp_path / "a")
    store.manifest["schema"] = 99
    store.write_manifest()
    with pytest.raises(ValueError, match="newer whence"):
        wh.resume(tmp_path / "a", target)
    (tmp_path / "a" / "manifest.json").write_text('{"schema": 1, "eng')
    with pytest.raises(ValueError, match="damaged"):
        wh.resume(tmp_path / "a", target)


def test_damaged_or_missing_chunk_is_named(target, tmp_path):
    _stored(target, tmp_path / "a")
    chunks = sorted((tmp_path / "a" / "replica-0001").glob("*-*.npz"))
    content = chunks[1].read_bytes()
    chunks[1].write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=chunks[1].name):
        wh.resume(tmp_path / "a", target)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    chunks[1].write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match="damaged"):
        wh.resume(tmp_path / "a", target)
    chunks[1].unlink()
    with pytest.raises(ValueError, match="lacks"):
        wh.resume(tmp_path / "a", target)


def test_torn_last_chunk_is_made_again(target, tmp_path):
    """A chunk whose state was not written yet: as after a kill between the two."""
    whole = _stored(target, tmp_path / "a")
    folder = tmp_path / "a" / "replica-0000"
    last = sorted(folder.glob("*-*.npz"))[-1]
    with np.load(folder / "state.npz") as file:
        arrays = {n: file[n] for n in file.files}
    start = int(last.stem.split("-")[0])
    shutil.copy(last, tmp_path / "copy.npz")
    # The state of an earlier moment comes from a run that was stopped there.
    with pytest.MonkeyPatch.context() as patch:
        _stop_after(patch, start // 40 + 1 if start % 40 == 0 else 3)
        with pytest.raises(Stopped):
            wh.infer(
                target,
                ENGINES["nuts"],
                key=jr.key(1),
                chunk_steps=40,
                store=tmp_path / "b",
                threads=1,
            )
    earlier = tmp_path / "b" / "replica-0000"
    assert len(arrays) > 1
    (earlier / last.name).write_bytes(last.read_bytes()[:100])
    again = wh.resume(tmp_path / "b", target, chunk_steps=40)
    assert_array_equal(again["slope"], whole["slope"])


def test_full_disk_keeps_what_was_written(target, tmp_path, monkeypatch):
    """ENOSPC in the middle: the error says so, and the run can be resumed later."""
    import errno

    whole = wh.infer(target, ENGINES["nuts"], key=jr.key(1))
    real, calls = os.replace, []

    def full(source, to):
        calls.append(to)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, to)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            wh.infer(
                target,
                ENGINES["nuts"],
                key=jr.key(1),
                chunk_steps=20,
                store=tmp_path / "a",
                threads=1,
            )
    assert not list((tmp_path / "a").rglob("*.tmp"))
    again = wh.resume(tmp_path / "a", target)
    assert_array_equal(again["slope"], whole["slope"])


def test_engine_of_somebody_else_must_be_passed(tmp_path):
    from whence.core._json import from_json, to_json

    assert from_json(to_json(ENGINES["bbvi"])) == ENGINES["bbvi"]
    assert from_json(to_json(ENGINES["sgld"])) == ENGINES["sgld"]
    with pytest.raises(ValueError, match="Engine of other.package is not one of whence's own"):
        from_json({"class": "other.package:Engine", "fields": {}})
    with pytest.raises(ValueError, match="must not hold arrays"):
        to_json(np.zeros(2))


def test_an_optimiser_is_asked_for_on_resume(target, tmp_path):
    """What cannot be written is told apart by name, and given again."""
    engine = wh.BBVI(steps=200, draws=50, optimizer=optax.adam(0.05))
    whole = wh.infer(target, engine, key=jr.key(1), store=tmp_path / "a", chunk_steps=40)
    with pytest.raises(ValueError, match="`engine` must be given"):
        wh.resume(tmp_path / "a", target)
    other = wh.BBVI(steps=200, draws=50, optimizer=optax.sgd(0.05))
    with pytest.raises(ValueError, match="`engine` must be the one of the run"):
        wh.resume(tmp_path / "a", target, engine=other)
    again = wh.resume(tmp_path / "a", target, engine=engine)
    assert_array_equal(again["slope"], whole["slope"])
    loaded = wh.load(tmp_path / "a", target=target, engine=engine)
    assert_array_equal(loaded.record.elbo, whole.record.elbo)
