"""Two processes that run one program together, on this machine."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh

HEAD = """
    import sys, warnings
    warnings.simplefilter("ignore")
    import whence as wh
    port, process, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    wh.enable_x64()
    wh.distributed(f"localhost:{port}", 2, process, devices=2)
    mesh = wh.mesh(chain=4)
    import jax, numpy as np, numpyro.distributions as dist
    class Schools(wh.Model):
        mu: object = wh.latent(dist.Normal(0.0, 5.0))
        tau: object = wh.latent(dist.HalfCauchy(5.0))
        theta: object = wh.latent(lambda m: dist.Normal(m.mu, m.tau), shape=(8,),
                                  noncentered=True)
        def likelihood(self, sigma):
            return dist.Normal(self.theta, sigma)
    y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    target, key = wh.condition(Schools(), y, sigma), jax.random.key(20261122)
"""
NUTS = """
    make = lambda draws: wh.NUTS(chains=4, warmup=60, draws=draws)
"""
SGLD = """
    make = lambda draws: wh.SGLD(chains=4, steps=60 + draws, warmup=60, thin=1, step_size=0.1)
"""
RUN = """
    store = f"{folder}/store"
    posterior = wh.infer(target, make(40), key=key, mesh=mesh, store=store)
    longer = wh.extend(store, target, draws=20, mesh=mesh)
    assert np.array_equal(posterior["theta"], longer["theta"][:, :40])
    try:
        wh.infer(target, make(40), key=key, mesh=mesh, store=store)
    except (ValueError, RuntimeError) as error:
        refused = str(error)
    np.savez(f"{folder}/{process}.npz", theta=longer["theta"], complete=longer.complete,
             refused=refused)
"""
ALONE = """
    import sys, warnings
    warnings.simplefilter("ignore")
    import whence as wh
    folder = sys.argv[3]
    wh.enable_x64()
    mesh = wh.mesh(chain=4)
"""
FULL = """
    full = wh.infer(target, make(60), key=key, mesh=mesh)
    again = wh.resume(f"{folder}/store", target)
    np.savez(f"{folder}/alone.npz", theta=full["theta"], again=again["theta"])
"""
ROWS = """
    rows = wh.infer(target, wh.BBVI(steps=100), key=key, mesh=wh.mesh(data=4))
    np.savez(f"{folder}/{process}.npz", mu=rows["mu"])
"""
LONG = """
    engine = wh.NUTS(chains=4, warmup=50, draws=10**6)
    store = f"{folder}/store"
    posterior = wh.infer(target, engine, key=key, mesh=mesh, store=store, chunk_steps=25)
    np.savez(f"{folder}/{process}.npz", theta=posterior["theta"], complete=posterior.complete)
"""


def _start(script, port, process, folder):
    environment = os.environ | {"WHENCE_CACHE": "off"}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    script = textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(port), str(process), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def _finish(*processes):
    try:
        for process in processes:
            out, _ = process.communicate(timeout=300)
            assert process.returncode == 0, out[-5000:]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize(
    "make", [SGLD, pytest.param(NUTS, marks=pytest.mark.slow)], ids=["sgld", "nuts"]
)
def test_two_processes_make_the_draws_of_one(tmp_path, make):
    port = _free_port()
    _finish(*(_start(HEAD + make + RUN, port, number, tmp_path) for number in (0, 1)))
    rest = HEAD[HEAD.index("    import jax") :]
    _finish(_start(ALONE + rest + make + FULL, 0, 0, tmp_path))
    zero, one, alone = (np.load(tmp_path / f"{name}.npz") for name in (0, 1, "alone"))
    assert zero["theta"].shape == (4, 60, 8)
    assert zero["complete"]
    assert one["complete"]
    assert_array_equal(zero["theta"], one["theta"])
    assert_array_equal(zero["theta"], alone["theta"])
    assert_array_equal(zero["theta"], alone["again"])
    assert "holds another run" in str(zero["refused"])
    assert "Process 0" in str(one["refused"])


FEDERATED = """
    import sys, warnings
    warnings.simplefilter("ignore")
    import whence as wh
    port, process, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    wh.enable_x64()
    wh.distributed(f"localhost:{port}", 2, process)
    mesh = wh.mesh(data=2)
    import jax, numpy as np, numpyro.distributions as dist
    sent = []
    for name in ("psum", "all_gather", "pmin"):
        def noted(x, *args, original=getattr(jax.lax, name), **more):
            sent.extend(leaf.size for leaf in jax.tree.leaves(x))
            return original(x, *args, **more)
        setattr(jax.lax, name, noted)
    class Mean(wh.Model):
        mu: object = wh.latent(dist.Normal(0.0, 1.0), shape=2)
        def likelihood(self):
            return dist.Normal(self.mu, 1.0).to_event(1)
    own = np.random.default_rng(process).normal(3.0 * process, 1.0, size=(200, 2))
    target = wh.condition(Mean(), own)
    engine = wh.FederatedSGLD(shards="processes", batch_size=20, chains=2, steps=12_000,
                              warmup=2_000, thin=4, local_steps=20, step_size=2.5e-4)
    try:
        wh.infer(target, engine, key=0, mesh=mesh, store=f"{folder}/store")
    except ValueError as error:
        refused = str(error)
    try:
        wh.infer(wh.condition(Mean(), own[process:]), engine, key=0, mesh=mesh)
    except ValueError as error:
        unlike = str(error)
    posterior = wh.infer(target, engine, key=0, mesh=mesh)
    np.savez(f"{folder}/{process}.npz", mu=posterior["mu"], own=own, sent=sent,
             refused=refused, unlike=unlike, inflation=posterior.record.inflation,
             error=posterior.record.inflation_error)
"""


def test_shards_stay_in_their_processes(tmp_path):
    """Against the exact posterior of all rows, of which each process has half.

    After 20 local steps of a shard, without surrogates, chains would be near its own posterior:
    the means of the two halves are 3 apart, 40 standard deviations.
    """
    port = _free_port()
    _finish(*(_start(FEDERATED, port, number, tmp_path) for number in (0, 1)))
    zero, one = (np.load(tmp_path / f"{name}.npz") for name in (0, 1))
    assert_array_equal(zero["mu"], one["mu"])
    rows = np.concatenate([zero["own"], one["own"]])
    precision = len(rows) + 1.0
    draws, h, a = zero["mu"], 2.5e-4, precision
    within = np.mean([half["own"].var(axis=0) for half in (zero, one)], axis=0)
    noise = len(rows) ** 2 / 20 * within
    variance = (1 + h * noise / 2) / (1 - h * a / 2) / a
    ess = wh.diagnostics.convergence(draws).ess_bulk
    assert np.all(np.abs(draws.mean((0, 1)) - rows.sum(0) / a) < 4.5 * np.sqrt(variance / ess))
    assert_allclose(draws.var(axis=(0, 1)), variance, rtol=4.5 * np.sqrt(2 / ess.min()))
    # What is told of the bias is by the gradients of all rows.
    told = zero["inflation"][:2] - variance * a
    assert np.all(np.abs(told) < 4.5 * zero["error"][:2])
    # Positions, gradients and surrogates of two latents, for two chains; never a row.
    assert 0 < max(zero["sent"]) <= 2 * 4
    assert "has no `store`" in str(zero["refused"])
    assert "as many data rows in every process" in str(one["unlike"])


@pytest.mark.slow
def test_rows_over_processes_differ_by_rounding_alone(tmp_path):
    port = _free_port()
    _finish(*(_start(HEAD + ROWS, port, number, tmp_path) for number in (0, 1)))
    rest = HEAD[HEAD.index("    import jax") :]
    alone = ROWS.replace("{process}", "alone").replace(", mesh=wh.mesh(data=4)", "")
    _finish(_start(ALONE + rest + alone, 0, 0, tmp_path))
    zero, one, alone = (np.load(tmp_path / f"{name}.npz") for name in (0, 1, "alone"))
    assert_array_equal(zero["mu"], one["mu"])
    assert_allclose(zero["mu"], alone["mu"], rtol=1e-8)


@pytest.mark.slow
def test_interrupt_of_one_process_ends_both_at_the_same_step(tmp_path):
    port = _free_port()
    processes = [_start(HEAD + LONG, port, number, tmp_path) for number in (0, 1)]
    for _ in range(1200):
        chunks = tmp_path.glob("store/replica-*/*-*.npz")
        if any(int(chunk.stem.split("-")[1]) > 150 for chunk in chunks):  # after warm-up
            break
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGINT)
    _finish(*processes)
    zero, one = (np.load(tmp_path / f"{name}.npz") for name in (0, 1))
    assert not zero["complete"]
    assert not one["complete"]
    assert 0 < zero["theta"].shape[1] < 10**6
    assert_array_equal(zero["theta"], one["theta"])


def test_too_late_to_become_one_of_several():
    jax.devices()  # JAX starts
    with pytest.raises(ValueError, match="before anything else in JAX"):
        wh.distributed("localhost:1", 2, 0)


def test_devices_are_positive():
    with pytest.raises(ValueError, match="`devices` must be at least 1, or None; got 0"):
        wh.distributed(devices=0)
