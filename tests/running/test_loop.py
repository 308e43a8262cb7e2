"""The loop: determinism, one compilation, failing and interrupted replicas."""

import itertools
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_array_equal
from threadpoolctl import threadpool_info

import whence as wh
from whence.core import RESULTS, Info, Sample, Schedule, _cache, clear_programs, never
from whence.core._engine import AbstractPausingEngine
from whence.running._collect import judge
from whence.running._loop import Outcome, run
from whence.running._manifest import create_store


class Plane(wh.AbstractTarget):
    """A standard Gaussian in two dimensions."""

    scale: Any = 1.0

    def init(self, *, key):
        return jr.uniform(key, (2,), minval=-2.0, maxval=2.0)

    def log_density(self, position):
        return -0.5 * jnp.sum((position / self.scale) ** 2)

    def constrain(self, position):
        return position


class Counting(wh.AbstractEngine):
    """Records what the loop does: a walk whose steps are the keys' normals."""

    chains: int = 3
    warmup: int = 5
    draws: int = 11
    fail_from: int = 99  # replicas from here on fail
    last: int = 10**9  # done after this many steps
    error_above: float = 1e9  # where a walk raises an error
    error_from: int = 10**9  # the step from which on all do
    extendable: bool = False

    @property
    def name(self):
        return "Counting"

    @property
    def schedule(self):
        return Schedule(self.chains, self.warmup, self.warmup + self.draws, self.extendable)

    def validate(self, target):
        del target

    def init(self, target, *, key):
        return target.init(key=key), jnp.zeros((), jnp.int32)

    def step(self, target, state, index, *, key):
        position, count = state
        position = position + jr.normal(key, position.shape)
        if min(self.error_above, self.error_from) < 1e9:
            lost = (position[0] > self.error_above) | (index >= self.error_from)
            position = eqx.error_if(position, lost, "no way from here")
        stats = {"index": index, "count": count}
        return (position, count + 1), Info(position, stats)

    def done(self, state):
        return state[1] >= self.last

    def result(self, state):
        # The starting point tells replicas apart: the loop gives no number to the engine.
        bad = state[0][0] > self.fail_from
        return RESULTS.where(bad, RESULTS.nonfinite_state, RESULTS.successful)

    def posterior(self, target, state, trace, *, key):
        del target, state, key
        return Sample(trace.sampling.position, trace.sampling.stats, method="mcmc")


KEY = jr.key(5)


def test_steps_are_counted_through_warmup_and_sampling():
    posterior = wh.infer(Plane(), Counting(), key=KEY)
    assert posterior["x"].shape == (3, 11, 2)
    assert_array_equal(posterior.stats["index"], np.tile(np.arange(5, 16), (3, 1)))
    assert_array_equal(posterior.stats["count"], np.tile(np.arange(5, 16), (3, 1)))
    assert not np.array_equal(posterior["x"][0], posterior["x"][1])


@pytest.mark.parametrize("chunk_steps", [1, 3, 7, 100])
@pytest.mark.parametrize("vectorised", [False, True])
def test_draws_do_not_depend_on_chunks_or_spread(chunk_steps, vectorised):
    reference = wh.infer(Plane(), Counting(), key=KEY)
    other = wh.infer(
        Plane(), Counting(), key=KEY, chunk_steps=chunk_steps, vectorised=vectorised
    )
    assert_array_equal(reference["x"], other["x"])
    assert_array_equal(reference.stats["count"], other.stats["count"])


def test_threads_do_not_change_draws():
    one = wh.infer(Plane(), Counting(), key=KEY, threads=1)
    many = wh.infer(Plane(), Counting(), key=KEY, threads=3)
    assert_array_equal(one["x"], many["x"])


def test_new_data_of_the_same_shape_compile_nothing():
    clear_programs()
    before = _cache.traces
    wh.infer(Plane(jnp.asarray(1.0)), Counting(), key=KEY)
    made = _cache.traces - before
    assert made == 1
    second = wh.infer(Plane(jnp.asarray(2.0)), Counting(), key=jr.key(9))
    assert _cache.traces - before == made
    assert second.seconds["compile"] == 0.0
    wh.infer(Plane(jnp.asarray(2.0)), Counting(draws=12), key=KEY)
    assert _cache.traces - before == 2 * made  # another engine is another program


def test_engine_that_is_done_early():
    posterior = wh.infer(Plane(), Counting(last=9), key=KEY)
    assert posterior["x"].shape == (3, 4, 2)


def test_errors_in_compiled_code_cost_one_replica_and_no_finished_chunk(tmp_path):
    walk = wh.infer(Plane(), Counting(warmup=0, draws=16), key=KEY)["x"]
    highest = walk[..., 0].max(axis=1)
    worst = int(np.argmax(highest))
    limit = float(np.sort(highest)[-2:].mean())  # only the chain that goes highest breaks off
    engine = Counting(warmup=0, draws=16, error_above=limit)
    folder = tmp_path / "run"
    words = f"chain {worst}.*no way from here"
    with pytest.warns(wh.InferenceWarning, match=words):
        kept = wh.infer(Plane(), engine, key=KEY, chunk_steps=4, store=folder)
    assert_array_equal(kept["x"], np.delete(walk, worst, axis=0))
    assert wh.load(folder, target=Plane(), engine=engine).num_draws > 0
    for vectorised in (False, True):
        broken = Counting(warmup=0, draws=16, error_from=8)
        how = {"key": KEY, "chunk_steps": 4, "vectorised": vectorised}
        with pytest.raises(wh.InferenceError, match="after 8 steps: .*no way from here"):
            wh.infer(Plane(), broken, **how)
        with pytest.warns(wh.InferenceWarning, match="no way from here"):
            part = wh.infer(Plane(), broken, throw=False, **how)
        assert_array_equal(part["x"], walk[:, :8])


@pytest.mark.parametrize("vectorised", [False, True])
def test_draws_before_an_error_are_kept_whatever_the_chunks(tmp_path, vectorised):
    """A chunk of sixteen steps breaks off at its eighth."""
    walk = wh.infer(Plane(), Counting(warmup=2, draws=14), key=KEY)["x"]
    engine = Counting(warmup=2, draws=14, error_from=7)
    with pytest.warns(wh.InferenceWarning, match=r"Failed: chain \d after 7 steps: .*no way"):
        part = wh.infer(
            Plane(), engine, key=KEY, throw=False, vectorised=vectorised, store=tmp_path / "a"
        )
    assert_array_equal(part["x"], walk[:, :5])
    assert "no way from here" in str(part.diagnose())
    assert wh.load(tmp_path / "a", target=Plane(), engine=engine).num_draws == 5


def test_a_pause_before_an_error_is_made_once():
    paused = []

    class Pausing(AbstractPausingEngine):
        engine: Counting = Counting(chains=1, warmup=0, error_from=9)
        name = property(lambda self: "Pausing")

        @property
        def schedule(self):
            return self.engine.schedule._replace(pauses=(6,))

        def pause(self, state, index):
            paused.append(index)
            return state

        def validate(self, target):
            del target

        def init(self, target, *, key):
            return self.engine.init(target, key=key)

        def step(self, target, state, index, *, key):
            return self.engine.step(target, state, index, key=key)

        def done(self, state):
            return self.engine.done(state)

        def result(self, state):
            return self.engine.result(state)

        def posterior(self, target, state, trace, *, key):
            return self.engine.posterior(target, state, trace, key=key)

    with pytest.warns(wh.InferenceWarning, match="after 9 steps"):
        wh.infer(Plane(), Pausing(), key=KEY, throw=False)
    assert paused == [6]


def test_chains_that_broke_off_early_do_not_cost_the_others_draws():
    walk = wh.infer(Plane(), Counting(warmup=0, draws=40), key=KEY)["x"]
    limit = float(walk[..., 0].max(axis=1).min()) - 1e-6  # every chain breaks off
    made = (walk[..., 0] > limit).argmax(axis=1)
    every = [c for n in (1, 2, 3) for c in itertools.combinations(range(3), n)]
    best = max(len(chains) * made[list(chains)].min() for chains in every)
    engine = Counting(warmup=0, draws=40, error_above=limit, extendable=True)
    with pytest.warns(wh.InferenceWarning, match="no way from here"):
        part = wh.infer(Plane(), engine, key=KEY, throw=False)
    assert part.num_chains * part.num_draws == best
    until = wh.Until(ess=1000)  # which would never be reached
    with pytest.raises(wh.InferenceError, match="no way from here"):
        wh.infer(Plane(), engine, key=KEY, until=until)


def test_chains_that_hardly_began_do_not_cost_the_others_draws():
    """Of a run that was stopped: all chains kept would end with the shortest."""
    engine = Counting(warmup=0, draws=100, extendable=True)
    steps = np.array([100, 90, 3])
    fine = [RESULTS.successful] * 3
    outcome = Outcome(None, list, steps, fine, steps >= 100, {}, "interrupted", 100)
    verdict = judge(outcome, engine, Plane(), KEY, throw=True)
    assert verdict.keep == [0, 1]
    assert verdict.failed == (
        "chain 2 after 3 steps: left out, so that the others keep the draws they have more",
    )
    equal = outcome._replace(steps=np.array([52, 50, 48]))
    assert judge(equal, engine, Plane(), KEY, throw=True).keep == [0, 1, 2]


def test_failed_replica_is_named_and_dropped():
    starts = [float(Plane().init(key=jr.split(jr.fold_in(KEY, c))[0])[0]) for c in range(3)]
    walk = wh.infer(Plane(), Counting(), key=KEY)["x"]
    end = walk[:, -1, 0]
    limit = float(np.sort(end)[-2:].mean())  # only the chain that ends highest fails
    with pytest.warns(wh.InferenceWarning, match=f"chain {int(np.argmax(end))}"):
        posterior = wh.infer(Plane(), Counting(fail_from=limit), key=KEY)
    assert posterior.num_chains == 2
    assert len(starts) == 3
    keep = np.delete(np.arange(3), np.argmax(end))
    assert_array_equal(posterior["x"], walk[keep])
    assert "failed_chains" in posterior.diagnose()


def test_all_failed():
    with pytest.raises(wh.InferenceError, match="smaller step size"):
        wh.infer(Plane(), Counting(fail_from=-(10**9)), key=KEY)
    with pytest.warns(wh.InferenceWarning):
        posterior = wh.infer(Plane(), Counting(fail_from=-(10**9)), key=KEY, throw=False)
    assert posterior.num_chains == 3
    assert len(posterior.failed) == 3


def test_interrupt_keeps_draws(monkeypatch):
    """A KeyboardInterrupt in the main thread ends the run after the present chunks."""
    engine = Counting(chains=2, warmup=0, draws=10**6)
    calls = []

    def on_progress(made, total, chains):
        calls.append(made)
        if made > 0 and len(calls) == 1 + calls.count(0):
            raise KeyboardInterrupt

    outcome = run(Plane(), engine, key=KEY, on_progress=on_progress, chunk_steps=50)
    assert outcome.ending == "interrupted"
    assert 0 < outcome.steps.min() < 10**6
    assert not outcome.finished.any()
    full = wh.infer(Plane(), Counting(chains=2, warmup=0, draws=50), key=KEY)["x"]
    assert_array_equal(outcome.records[0].position[:50], full[0])


def test_ctrl_c_returns_incomplete_posterior(tmp_path):
    """SIGINT to a real process: draws so far, marked incomplete."""
    script = textwrap.dedent(
        """
        import sys, warnings
        warnings.simplefilter("ignore")
        import jax, numpy as np, numpyro.distributions as dist, whence as wh
        class M(wh.Model):
            a: object = wh.latent(dist.Normal(0.0, 1.0))
            def likelihood(self):
                return dist.Normal(self.a, 1.0)
        target = wh.condition(M(), np.zeros(3))
        engine = wh.SGLD(steps=10**9, step_size=1e-2, thin=1000, warmup=0, chains=2)
        p = wh.infer(target, engine, key=jax.random.key(0), chunk_steps=5, store=sys.argv[1])
        print(p.complete, p.num_draws, p["a"].shape, "incomplete" in p.diagnose())
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(1200):  # until the first draws are on disk, however slow the machine
        if list(tmp_path.glob("run/replica-*/*-*.npz")) or process.poll() is not None:
            break
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.startswith("False "), out + err
    assert int(out.split()[1]) > 0
    assert out.split()[-1] == "True"


def test_ctrl_c_after_the_run_keeps_the_draws(monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(wh.Posterior, "trouble", interrupted)
    with pytest.warns(wh.InferenceWarning, match="Interrupted after the run"):
        posterior = wh.infer(Plane(), Counting(), key=KEY)
    assert posterior.complete


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state, info: (state, (info.position, {})), "and an `Info`; got a tuple"),
        (lambda state, info: ((state[0], state[1][None]), info), r"shape=\(\).*shape=\(1,\)"),
    ],
)
def test_what_a_step_must_return(change, words):
    class Changed(AbstractPausingEngine):
        engine: Counting = Counting()
        name = property(lambda self: "Changed")
        schedule = property(lambda self: self.engine.schedule)

        def pause(self, state, index):
            raise NotImplementedError

        def validate(self, target):
            del target

        def init(self, target, *, key):
            return self.engine.init(target, key=key)

        def step(self, target, state, index, *, key):
            return change(*self.engine.step(target, state, index, key=key))

        def done(self, state):
            return never()

        def result(self, state):
            return RESULTS.successful

        def posterior(self, target, state, trace, *, key):
            raise NotImplementedError

    with pytest.raises(ValueError, match=f"`step` of Changed must return .*{words}"):
        wh.infer(Plane(), Changed(), key=KEY)


def test_worker_errors_reach_the_caller():
    class Broken(wh.AbstractTarget):
        def init(self, *, key):
            return jnp.zeros(2)

        def log_density(self, position):
            return -0.5 * jnp.sum(position**2)

        def constrain(self, position):
            return position

    engine = eqx.tree_at(lambda e: e.draws, Counting(), 0)
    posterior = None
    with pytest.raises((ValueError, AttributeError)):
        posterior = wh.infer(Broken(), engine, key=KEY)
    assert posterior is None


def test_runs_outside_the_main_thread():
    result = []
    thread = threading.Thread(
        target=lambda: result.append(wh.infer(Plane(), Counting(), key=KEY))
    )
    thread.start()
    thread.join(timeout=60)
    assert result[0]["x"].shape == (3, 11, 2)


def test_never_is_false():
    assert not bool(never())


def test_model_refit_compiles_nothing():
    class Line(wh.Model):
        slope: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self, x):
            return dist.Normal(self.slope * x, 1.0)

    clear_programs()
    before = _cache.traces
    x = np.linspace(0.0, 1.0, 10)
    engine = wh.SGLD(steps=20, step_size=1e-2, warmup=0, chains=2)
    counts = []
    for i, label in enumerate(("a", "b")):
        model = Line(coords={"row": [f"{label}{k}" for k in range(10)]})
        target = wh.condition(model, i * x, x + i, dims="row")
        posterior = wh.infer(target, engine, key=jr.key(i))
        draws = posterior.draws
        assert draws.coords["row"][0] == f"{label}0"
        assert posterior["slope"].shape[0] == 2
        counts.append(_cache.traces - before)
    assert counts[0] == counts[1]


def test_jit_disabled_gives_the_same():
    engine = Counting(chains=1, warmup=1, draws=2)
    compiled = wh.infer(Plane(), engine, key=KEY)["x"]
    key = jr.split(jr.fold_in(KEY, 0))
    state = engine.init(Plane(), key=key[0])
    for i in range(3):
        state, info = engine.step(Plane(), state, jnp.int32(i), key=jr.fold_in(key[1], i))
    np.testing.assert_allclose(compiled[0, -1], info.position, rtol=1e-12)


def test_keys_are_typed_and_of_any_kind():
    posterior = wh.infer(Plane(), Counting(), key=jax.random.key(3, impl="rbg"))
    assert posterior.manifest["key_impl"] == "rbg"


def _blas_threads():
    return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_has_one_thread_while_chains_have_several(threads, key):
    seen, before = [], _blas_threads()
    watch = lambda *told: seen.append(_blas_threads())
    run(Plane(), Counting(chains=2), key=key, threads=threads, on_progress=watch)
    assert before
    assert seen[0] == ([1] * len(before) if threads > 1 else before)
    assert _blas_threads() == before


class Adding(AbstractPausingEngine):
    """Counts its steps; a pause adds a hundred times the number of the step to come."""

    chains: int = 2

    @property
    def name(self):
        return "Adding"

    @property
    def schedule(self):
        return Schedule(self.chains, 4, 12, pauses=(3, 4, 9))

    def validate(self, target):
        del target

    def init(self, target, *, key):
        return jnp.zeros(())

    def step(self, target, state, index, *, key):
        return state + 1, Info({"x": state + 1}, {})

    def pause(self, state, index):
        return np.asarray(state + 100 * index)

    def done(self, state):
        return never()

    def result(self, state):
        return RESULTS.successful

    def posterior(self, target, state, trace, *, key):
        return Sample(trace.sampling.position, {}, method="mcmc")


@pytest.mark.parametrize("chunk_steps", [1, 2, 5, None])
@pytest.mark.parametrize("vectorised", [False, True])
def test_pauses(chunk_steps, vectorised, key):
    outcome = run(Plane(), Adding(), key=key, chunk_steps=chunk_steps, vectorised=vectorised)
    extra = np.repeat([0, 300, 700, 1600], [3, 1, 5, 3])
    for record in outcome.records:
        assert_array_equal(record.position["x"], np.arange(1, 13) + extra)


@pytest.mark.parametrize("stop", [2, 3, 4, 5, 9])
def test_a_pause_is_made_once_though_the_run_stops_there(stop, key, tmp_path):
    target, engine = Plane(), Adding()
    whole = run(target, engine, key=key)
    store = create_store(tmp_path / "run", target, engine, key, {})
    run(target, engine, key=key, steps=stop, store=store)
    rest = run(target, engine, key=key, store=store)
    for one, two in zip(whole.records, rest.records, strict=True):
        assert_array_equal(one.position["x"], two.position["x"])
