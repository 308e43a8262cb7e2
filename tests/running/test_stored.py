"""Stored runs read, extended, replayed; runs that end by a rule."""

import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
import xarray
from numpy.testing import assert_array_equal

import whence as wh
from whence.core import Sample
from whence.diagnostics import convergence
from whence.running._until import Quality, quality
from whence.storage import RunStore


class Line(wh.Model):
    slope: Any = wh.latent(dist.Normal(0.0, 1.0))
    sigma: Any = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self, x):
        return dist.Normal(self.slope * x, self.sigma)


X = np.linspace(0.0, 1.0, 20)
KEY = jr.key(7)
NUTS = wh.NUTS(chains=2, warmup=100, draws=150)


@pytest.fixture
def target():
    return wh.condition(Line(), 0.7 * X + 0.1 * np.cos(40 * X), X)


def _same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert_array_equal(a[name], b[name])


# -- extend ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["nuts", "sgld", pytest.param("chees", marks=pytest.mark.slow)]
)
def test_extended_equals_longer_from_the_start(name, target, tmp_path):
    make = {
        "nuts": lambda draws: wh.NUTS(chains=2, warmup=60, draws=draws),
        "sgld": lambda draws: wh.SGLD(
            chains=2, warmup=30, steps=30 + 3 * draws, step_size=1e-3, thin=3
        ),
        "chees": lambda draws: wh.ChEES(chains=8, warmup=60, draws=draws),
    }[name]
    wh.infer(target, make(40), key=KEY, store=tmp_path / "a")
    extended = wh.extend(tmp_path / "a", target, draws=25)
    assert extended.complete
    _same(extended, wh.infer(target, make(65), key=KEY))
    _same(wh.resume(tmp_path / "a", target), extended)  # complete: only read


def test_extending_an_unfinished_run_makes_what_it_lacks(target, tmp_path):
    whole = wh.infer(target, NUTS, key=KEY, store=tmp_path / "a", chunk_steps=40)
    store = RunStore.open(tmp_path / "a")
    for replica in (tmp_path / "a").glob("replica-0001"):
        for file in replica.iterdir():
            file.unlink()  # chain 1 never began
    store.manifest["complete"] = False
    store.write_manifest()
    extended = wh.extend(tmp_path / "a", target, draws=10)
    assert extended.num_draws == 160
    assert_array_equal(extended["slope"][:, :150], whole["slope"])


def test_a_folder_of_a_complete_run_that_was_removed_is_made_again(target, tmp_path):
    whole = wh.infer(target, NUTS, key=KEY, store=tmp_path / "a", chunk_steps=40)
    shutil.rmtree(tmp_path / "a" / "replica-0001")
    _same(wh.resume(tmp_path / "a", target, chunk_steps=40), whole)
    _same(wh.load(tmp_path / "a", target=target), whole)


def test_extend_refuses(target, tmp_path):
    wh.infer(target, NUTS, key=KEY, store=tmp_path / "a")
    before = (tmp_path / "a" / "manifest.json").read_text()
    for wrong in ({}, {"draws": 3, "until": wh.Until(ess=10)}):
        with pytest.raises(ValueError, match="either `draws` or `until`"):
            wh.extend(tmp_path / "a", target, **wrong)
    with pytest.raises(ValueError, match="at least 1, or None; got 0"):
        wh.extend(tmp_path / "a", target, draws=0)
    assert (tmp_path / "a" / "manifest.json").read_text() == before
    wh.infer(target, wh.TemperedSMC(particles=50), key=KEY, store=tmp_path / "s")
    with pytest.raises(ValueError, match="ends by itself"):
        wh.extend(tmp_path / "s", target, draws=10)


# -- until -------------------------------------------------------------------


def test_until_the_goal(target):
    until = wh.Until(ess=400, rhat=1.02)
    found = wh.infer(target, wh.NUTS(chains=2, warmup=150), key=KEY, until=until)
    positions = jax.tree.leaves(found.sample.positions)
    each = [convergence(x) for x in positions]
    assert min(min(c.ess_bulk.min(), c.ess_tail.min()) for c in each) >= 400
    assert max(c.rhat.max() for c in each) <= 1.02
    assert found.complete
    assert "The goal was reached" in found.stopped
    # No longer than it had to be: at the look before, fewer draws were not enough.
    _same(found, wh.infer(target, wh.NUTS(chains=2, warmup=150), key=KEY, until=until))
    direct = wh.infer(target, wh.NUTS(chains=2, warmup=150, draws=found.num_draws), key=KEY)
    _same(found, direct)


def test_until_most_draws(target):
    until = wh.Until(ess=1e7, max_draws=130)
    with pytest.warns(wh.InferenceWarning, match="goal of `until` was not reached"):
        found = wh.infer(target, NUTS, key=KEY, until=until)
    assert found.num_draws == 130
    assert "max_draws" in found.stopped
    assert found.complete


def test_until_the_clock(target, tmp_path):
    until, engine = wh.Until(ess=1e9, max_seconds=0.7), wh.NUTS(chains=2, warmup=10, draws=50)
    wh.infer(target, engine, key=KEY, chunk_steps=50)  # compiled before the clock runs
    begin = time.perf_counter()
    with pytest.warns(wh.InferenceWarning, match="goal of `until`"):
        found = wh.infer(
            target, engine, key=KEY, until=until, store=tmp_path / "a", chunk_steps=50
        )
    assert time.perf_counter() - begin < 60  # a machine may be slow, but it did end
    assert "max_seconds" in found.stopped
    assert found.num_draws > 0
    again = wh.resume(tmp_path / "a", target)
    _same(again, found)
    assert again.stopped == found.stopped
    longer = wh.extend(tmp_path / "a", target, draws=5)
    assert longer.num_draws == found.num_draws + 5
    assert_array_equal(longer["slope"][:, :-5], found["slope"])


def test_time_over_before_any_draw(target):
    engine = wh.NUTS(chains=2, warmup=10**8)
    with pytest.raises(wh.InferenceError, match="time was over"):
        wh.infer(target, engine, key=KEY, until=wh.Until(max_seconds=0.5), chunk_steps=100)


def test_until_and_a_store_and_a_stop(target, tmp_path, monkeypatch):
    """Killed between looks, the resumed run ends where the uninterrupted one does."""
    from whence.running._worker import Worker

    until, engine = wh.Until(ess=900), wh.NUTS(chains=2, warmup=100)
    whole = wh.infer(target, engine, key=KEY, until=until, chunk_steps=45)
    made, advance = [], Worker.advance

    def counted(self, stop):
        made.append(stop)
        if len(made) > 9:
            raise RuntimeError("killed")
        return advance(self, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "advance", counted)
        with pytest.raises(RuntimeError, match="killed"):
            wh.infer(
                target,
                engine,
                key=KEY,
                until=until,
                chunk_steps=45,
                threads=1,
                store=tmp_path / "a",
            )
    again = wh.resume(tmp_path / "a", target)
    _same(again, whole)
    assert again.stopped == whole.stopped


def test_until_refuses(target):
    for wrong, name in (
        ({}, "at least one"),
        ({"ess": 0.0}, "`ess`"),
        ({"rhat": 1.0}, "`rhat`"),
        ({"max_draws": 0}, "`max_draws`"),
        ({"max_seconds": float("nan")}, "`max_seconds`"),
    ):
        with pytest.raises(ValueError, match=name):
            wh.Until(**wrong)
    with pytest.raises(ValueError, match="`until` must be"):
        wh.running._infer.check_until(400, NUTS)
    with pytest.raises(ValueError, match="ends by itself"):
        wh.infer(target, wh.BBVI(steps=10), key=KEY, until=wh.Until(ess=10))


def test_quality_is_that_of_the_worst_latent():
    draws = np.random.default_rng(0).normal(size=(2, 500, 2))
    sticky = np.cumsum(np.random.default_rng(1).normal(size=(2, 500)), axis=1)
    found = quality(Sample({"a": draws, "b": sticky}, {}, method="mcmc"))
    assert found.ess < 50
    assert found.rhat > 1.05
    still = quality(Sample({"a": draws, "b": np.zeros((2, 500))}, {}, method="mcmc"))
    assert still.ess == 0
    assert still.rhat == np.inf
    assert quality(None) == Quality(0.0, np.inf)


def test_interrupted_while_looking_keeps_the_draws(target, monkeypatch):
    from whence.running import _until

    def interrupted(sample):
        raise KeyboardInterrupt

    monkeypatch.setattr(_until, "quality", interrupted)
    with pytest.warns(wh.InferenceWarning, match="Interrupted"):
        found = wh.infer(target, NUTS, key=KEY, until=wh.Until(ess=500))
    assert not found.complete
    assert found.num_draws == 100


# -- reading -----------------------------------------------------------------


def test_a_store_is_read_when_draws_are_asked_for(target, tmp_path, monkeypatch):
    whole = wh.infer(target, NUTS, key=KEY, store=tmp_path / "a")
    read, chunks = [], RunStore.chunks

    def counted(self, replica, stop):
        read.append(replica)
        return chunks(self, replica, stop)

    monkeypatch.setattr(RunStore, "chunks", counted)
    traces = wh.core._cache.traces
    loaded = wh.load(tmp_path / "a", target=target)
    assert not read
    assert wh.core._cache.traces == traces  # nothing was compiled either
    assert loaded.complete
    assert loaded.manifest["data_sha256"] == whole.manifest["data_sha256"]
    _same(loaded, whole)
    assert read == [0, 1]
    for stat in whole.stats:
        assert_array_equal(loaded.stats[stat], whole.stats[stat])
    tree = loaded.to_datatree(groups=("posterior", "sample_stats", "log_likelihood"))
    assert_array_equal(tree["posterior"]["slope"].values, whole["slope"])
    assert tree["log_likelihood"]["y"].shape == (2, 150, 20)
    assert loaded.diagnose().ok == whole.diagnose().ok


def test_thinned_and_unfinished_and_vectorised_reading(target, tmp_path):
    whole = wh.infer(target, NUTS, key=KEY, store=tmp_path / "a")
    thinned = wh.load(tmp_path / "a", target=target, thin=4)
    assert_array_equal(thinned["slope"], whole["slope"][:, ::4])
    together = wh.infer(target, NUTS, key=KEY, store=tmp_path / "v", vectorised=True)
    _same(wh.load(tmp_path / "v", target=target), together)
    store = RunStore.open(tmp_path / "a")
    store.manifest["complete"] = False
    store.write_manifest()
    unfinished = wh.load(tmp_path / "a", target=target)
    assert not unfinished.complete
    assert "incomplete" in repr(unfinished)


@pytest.mark.parametrize("engine", [wh.TemperedSMC(particles=64), wh.BBVI(steps=300, draws=50)])
def test_engines_that_end_by_themselves_are_read_too(engine, target, tmp_path):
    whole = wh.infer(target, engine, key=KEY, store=tmp_path / "a")
    loaded = wh.load(tmp_path / "a", target=target)
    _same(loaded, whole)
    assert loaded.log_evidence == whole.log_evidence
    with pytest.raises(ValueError, match="`thin` does not apply"):
        wh.load(tmp_path / "a", target=target, thin=2)


def test_reading_refuses(target, tmp_path):
    wh.infer(target, NUTS, key=KEY, store=tmp_path / "a")
    with pytest.raises(ValueError, match="`target` must be given"):
        wh.load(tmp_path / "a")
    with pytest.raises(ValueError, match="`thin` must be at least 1"):
        wh.load(tmp_path / "a", target=target, thin=0)
    for file in (tmp_path / "a").glob("replica-*/*"):
        file.unlink()
    with pytest.raises(ValueError, match="no draws yet"):
        wh.load(tmp_path / "a", target=target)
    with pytest.raises(ValueError, match="`engine` and `thin`"):
        wh.load(tmp_path / "a.nc", target=target, thin=2)
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="a folder without the manifest.json"):
        wh.load(tmp_path / "a", target=target)


def test_a_file_whose_groups_were_changed_is_refused(target, tmp_path):
    draws = {"slope": np.zeros((1, 4)), "sigma": np.ones((1, 4))}
    wh.Posterior.from_draws(target, draws).save(tmp_path / "a.nc")
    tree = xarray.load_datatree(tmp_path / "a.nc", engine="h5netcdf")
    for group in ("unconstrained_posterior", "posterior"):
        del tree[group]
        tree.to_netcdf(tmp_path / f"{group}.nc", engine="h5netcdf")
        with pytest.raises(ValueError, match=f"group `{group}`"):
            wh.load(tmp_path / f"{group}.nc", target=target)


def test_a_folder_that_cannot_be_written(target, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="`store` cannot be written"):
        wh.infer(target, NUTS, key=KEY, store=tmp_path / "file" / "run")


def test_early_ends_of_replicas_that_run_together_are_kept(tmp_path):
    """One replica is done before the other; the stored run reads back as it was."""

    class Plane(wh.AbstractTarget):
        def init(self, *, key):
            return jr.normal(key, (2,))

        def log_density(self, position):
            return -0.5 * jnp.sum(position**2)

        def constrain(self, position):
            return position

    class Short(wh.AbstractEngine):
        """Two walks; each is done at its own, random step."""

        @property
        def name(self):
            return "Short"

        @property
        def schedule(self):
            return wh.Schedule(2, 0, 60)

        def validate(self, target):
            del target

        def init(self, target, *, key):
            return target.init(key=key), jr.randint(key, (), 5, 50), jnp.zeros((), jnp.int32)

        def step(self, target, state, index, *, key):
            position = state[0] + jr.normal(key, (2,))
            return (position, state[1], state[2] + 1), wh.Info(position, {"index": index})

        def done(self, state):
            return state[2] >= state[1]

        def result(self, state):
            return wh.RESULTS.where(state[2] >= 0, wh.RESULTS.successful, wh.RESULTS.max_steps)

        def posterior(self, target, state, trace, *, key):
            return wh.Sample(trace.sampling.position, trace.sampling.stats, method="mcmc")

    from whence.running._loop import run

    how = {"key": jr.key(3), "chunk_steps": 4}
    apart = run(Plane(), Short(), vectorised=False, **how)
    together = run(Plane(), Short(), vectorised=True, **how)
    assert len(set(apart.steps)) == 2
    assert_array_equal(apart.steps, together.steps)
    for a, b in zip(apart.records, together.records):
        assert_array_equal(a.stats["index"], b.stats["index"])
    with_store = RunStore.create(tmp_path / "a", {})
    stored = run(Plane(), Short(), vectorised=True, store=with_store, **how)
    again = run(Plane(), Short(), vectorised=True, store=with_store, **how)
    assert_array_equal(stored.steps, apart.steps)
    assert_array_equal(again.steps, apart.steps)


# -- replay ------------------------------------------------------------------


def test_replay_is_bitwise_here(target, tmp_path):
    wh.infer(target, NUTS, key=KEY, store=tmp_path / "a")
    found = wh.replay(tmp_path / "a", target)
    assert found.ok
    assert found.tier == "bitwise"
    assert set(found.differences.values()) == {0.0}
    assert not found.changed
    assert "bit for bit" in str(found)


def test_replay_tells_rounding_from_error(target, tmp_path):
    """Another key stands for another platform: other draws of the same posterior."""
    from whence.running._replay import _compare

    engine = wh.NUTS(chains=4, warmup=200, draws=500)
    one, other = (wh.infer(target, engine, key=jr.key(i)) for i in (1, 2))
    found = _compare(one.variables, other.variables, True, {"jax": ("0.1", "0.2")})
    assert found.tier == "statistical"
    assert "jax was 0.1 and is 0.2" in str(found)
    wrong = {n: v + 0.5 * v.std() for n, v in other.variables.items()}
    found = _compare(one.variables, wrong, True, {})
    assert found.tier == "different"
    assert not found.ok
    assert "same model?" in str(found)
    short = {n: v[:, :10] for n, v in other.variables.items()}
    assert _compare(one.variables, short, True, {}).tier == "different"


@pytest.mark.slow
def test_replay_after_extending_and_of_particles(target, tmp_path):
    wh.infer(target, NUTS, key=KEY, store=tmp_path / "a")
    wh.extend(tmp_path / "a", target, draws=20)
    assert wh.replay(tmp_path / "a", target).tier == "bitwise"
    wh.infer(target, wh.TemperedSMC(particles=64), key=KEY, store=tmp_path / "s")
    assert wh.replay(tmp_path / "s", target).tier == "bitwise"
