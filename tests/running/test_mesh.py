"""Chains, rows and particles over devices, in one process and in several.

Tests that need four devices run in a process of their own, which has them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.sharding import Mesh, PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh
from whence.core import clear_programs
from whence.core._cache import is_data
from whence.running._mesh import plan_layout
from whence.running._program import build_plan
from whence.running._sharding import place

COUNT = 4
HAS_DEVICES = os.environ.get("JAX_NUM_CPU_DEVICES") == str(COUNT)
four = pytest.mark.skipif(not HAS_DEVICES, reason=f"runs in a process with {COUNT} devices")
KEY = jr.key(20261121)


class Schools(wh.Model):
    """Rubin (1981): skewed, and trees of different depth."""

    mu: jax.Array = wh.latent(dist.Normal(0.0, 5.0))
    tau: jax.Array = wh.latent(dist.HalfCauchy(5.0))
    theta: jax.Array = wh.latent(
        lambda m: dist.Normal(m.mu, m.tau), shape=(8,), noncentered=True
    )

    def likelihood(self, sigma):
        return dist.Normal(self.theta, sigma)


class Counts(wh.Model):
    """A conjugate model: the posterior is a Gamma, skewed when counts are few."""

    rate: jax.Array = wh.latent(dist.Gamma(2.0, 1.0))

    def likelihood(self, exposure):
        return dist.Poisson(self.rate * exposure)


class Line(wh.Model):
    """Logistic regression: its matrix product is what compilers like to rearrange."""

    slope: jax.Array = wh.latent(dist.Normal(0.0, 1.0), shape=(3,))

    def likelihood(self, x):
        return dist.Bernoulli(logits=x @ self.slope)


SCHOOLS = wh.condition(
    Schools(),
    np.array([28.0, 8, -3, 7, -1, 1, 18, 12]),
    np.array([15.0, 10, 16, 11, 9, 11, 10, 18]),
)
Y = np.array([0, 1, 0, 0, 2, 0, 0, 1, 0, 0, 0, 1])
COUNTS = wh.condition(Counts(), Y, np.full(12, 0.25))
SHAPE, RATE = 2.0 + Y.sum(), 1.0 + 3.0
_X = np.random.default_rng(3).normal(size=(400, 3))
LINE = wh.condition(Line(), (_X @ [0.5, -1.0, 0.2] > 0.1).astype(int), _X)


def _check_counts(posterior):
    """Compare the mean of the rate and of its square with the Gamma's."""
    rate = np.asarray(posterior["rate"])
    truth = {1: SHAPE / RATE, 2: SHAPE * (SHAPE + 1) / RATE**2}
    for power, expected in truth.items():
        values = rate**power
        ess = _ess(values)
        assert ess > 200
        assert abs(values.mean() - expected) < 4.5 * values.std() / np.sqrt(ess)


def _ess(values):
    from arviz_stats.base import array_stats

    return float(array_stats.ess(values, chain_axis=0, draw_axis=1, method="mean"))


# -- with one device ---------------------------------------------------------------


def _run_with_devices(*arguments):
    command = [sys.executable, "-m", "pytest", __file__, "-n", "0", "-x", *arguments]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(COUNT)}
    for name in [n for n in environment if n.startswith("PYTEST_XDIST")]:
        del environment[name]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* passed", done.stdout), done.stdout


@pytest.mark.skipif(HAS_DEVICES, reason="is what starts this process")
def test_with_four_devices():
    """Runs the tests of this file that need devices, in a process that has them."""
    _run_with_devices()


@pytest.mark.slow
@pytest.mark.skipif(HAS_DEVICES, reason="is what starts this process")
def test_with_four_devices_slowly():
    _run_with_devices("-m", "slow")


@pytest.mark.skipif(HAS_DEVICES, reason="needs a process with one device")
def test_too_late_for_more_devices():
    with pytest.raises(ValueError, match="JAX_NUM_CPU_DEVICES=64"):
        wh.mesh(chain=64)


def test_mesh_asks_for_devices_in_time():
    script = (
        "import whence as wh; mesh = wh.mesh(chain=2, data=3); import jax;"
        "print(dict(mesh.shape), len(jax.devices()))"
    )
    environment = {n: v for n, v in os.environ.items() if n != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "{'chain': 2, 'data': 3, 'particle': 1} 6", done.stderr


@pytest.mark.parametrize("arguments", [{"chain": 0}, {"data": -1}, {"particle": 0}])
def test_sizes_are_positive(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        wh.mesh(**arguments)


def test_devices_must_be_as_many_as_asked():
    with pytest.raises(ValueError, match="must hold 2 devices; got 1"):
        wh.mesh(chain=2, devices=jax.devices()[:1])


@pytest.mark.slow
def test_mesh_of_one_device_changes_nothing():
    engine = wh.NUTS(chains=2, warmup=100, draws=50)
    one = wh.infer(SCHOOLS, engine, key=KEY)
    other = wh.infer(SCHOOLS, engine, key=KEY, mesh=wh.mesh(chain=1))
    assert_array_equal(one["theta"], other["theta"])


# -- with four devices: chains -----------------------------------------------------


@four
@pytest.mark.parametrize(
    ("target", "engine"),
    [
        (COUNTS, wh.NUTS(chains=4, warmup=60, draws=60)),
        pytest.param(SCHOOLS, wh.NUTS(chains=8, warmup=100, draws=60), marks=pytest.mark.slow),
        pytest.param(LINE, wh.NUTS(chains=4, warmup=60, draws=60), marks=pytest.mark.slow),
        (LINE, wh.SGLD(chains=4, steps=200, warmup=50, batch_size=20)),
    ],
    ids=["counts", "schools", "line", "sgld"],
)
def test_meshes_agree_to_the_last_bit(target, engine):
    one = wh.infer(target, engine, key=KEY, mesh=wh.mesh(chain=2))
    other = wh.infer(target, engine, key=KEY, mesh=wh.mesh(chain=4), chunk_steps=37)
    for name, values in one.variables.items():
        assert_array_equal(values, other[name])


@four
def test_chains_on_devices_are_those_of_threads():
    """Same keys, same starts, same trees; the compiler may round differently."""
    engine = wh.NUTS(chains=4, warmup=12, draws=12)
    one = wh.infer(SCHOOLS, engine, key=KEY)
    other = wh.infer(SCHOOLS, engine, key=KEY, mesh=wh.mesh(chain=4))
    assert_allclose(one["theta"], other["theta"], rtol=1e-6)
    assert_array_equal(one.stats["n_steps"], other.stats["n_steps"])


@four
@pytest.mark.slow
def test_vectorised_chains_on_devices_are_right():
    engine = wh.NUTS(chains=8, warmup=300, draws=500)
    _check_counts(wh.infer(COUNTS, engine, key=KEY, mesh=wh.mesh(chain=4), vectorised=True))


@four
def test_stored_runs_go_on_with_another_mesh(tmp_path):
    part, whole = (wh.SGLD(chains=4, steps=n, warmup=10, thin=1) for n in (30, 60))
    full = wh.infer(COUNTS, whole, key=KEY, mesh=wh.mesh(chain=4))
    wh.infer(COUNTS, part, key=KEY, mesh=wh.mesh(chain=2), store=tmp_path / "a")
    assert len(list((tmp_path / "a").glob("replica-*"))) == 1
    longer = wh.extend(tmp_path / "a", COUNTS, draws=30, mesh=wh.mesh(chain=4))
    assert_array_equal(longer["rate"], full["rate"])
    read = wh.resume(tmp_path / "a", COUNTS)
    assert_array_equal(read["rate"], full["rate"])


def test_runs_begun_without_a_mesh_go_on_without(tmp_path):
    engine = wh.SGLD(chains=2, steps=40, warmup=10, batch_size=5)
    wh.infer(LINE, engine, key=KEY, store=tmp_path / "a", throw=False)
    with pytest.raises(ValueError, match="begun without"):
        wh.resume(tmp_path / "a", LINE, mesh=wh.mesh(chain=1))


@four
def test_meshes_have_programs_of_their_own():
    clear_programs()
    engine = wh.SGLD(chains=4, steps=20, warmup=4)
    made = []
    for mesh in (wh.mesh(chain=4), wh.mesh(chain=4), wh.mesh(chain=2), None):
        posterior = wh.infer(COUNTS, engine, key=KEY, mesh=mesh, throw=False)
        made.append(posterior.seconds["compile"] > 0)
    assert made == [True, False, True, True]


@four
def test_mesh_made_by_hand():
    devices = np.array(jax.devices()).reshape(2, 2)
    mesh = plan_layout(Mesh(devices, ("data", "chain")), COUNTS, wh.NUTS()).mesh
    assert dict(mesh.shape) == {"chain": 2, "data": 2, "particle": 1}
    assert_array_equal(mesh.devices[:, :, 0], devices.T)


# -- with four devices: rows and particles -----------------------------------------


@four
@pytest.mark.parametrize(
    "sizes",
    [pytest.param({"data": 4}, marks=pytest.mark.slow), {"chain": 2, "data": 2}],
    ids=str,
)
@pytest.mark.slow
def test_rows_on_devices_give_the_posterior(sizes):
    engine = wh.NUTS(chains=4, warmup=300, draws=500)
    _check_counts(wh.infer(COUNTS, engine, key=KEY, mesh=wh.mesh(**sizes)))


@four
def test_rows_on_devices_when_latents_are_as_many():
    """Latents may look like rows; chains of different tree depth must not wait for ever."""
    engine = wh.NUTS(chains=4, warmup=300, draws=400)
    one = wh.infer(SCHOOLS, engine, key=KEY)
    other = wh.infer(SCHOOLS, engine, key=jr.key(77), mesh=wh.mesh(chain=2, data=2))
    sd = one["mu"].std()
    error = sd * np.sqrt(1 / _ess(one["mu"]) + 1 / _ess(other["mu"]))
    assert abs(one["mu"].mean() - other["mu"].mean()) < 4.5 * error


@four
@pytest.mark.slow
def test_rows_on_devices_differ_by_rounding_alone():
    """Where rounding is not amplified, as it is by a sampler's accept or reject."""
    engine = wh.BBVI(steps=300)
    one = wh.infer(LINE, engine, key=KEY)
    other = wh.infer(LINE, engine, key=KEY, mesh=wh.mesh(data=4))
    assert_allclose(one["slope"], other["slope"], rtol=1e-9)


@four
def test_rows_are_divided_and_all_else_is_not():
    mesh = wh.mesh(data=4)
    layout = plan_layout(mesh, LINE, wh.NUTS())
    (target, _), *_ = place(layout, (LINE, None), {}, KEY, np.arange(4), 0, 1)
    assert target.inputs[0].sharding.shard_shape((400, 3)) == (100, 3)
    assert target.y.sharding.shard_shape((400,)) == (100,)
    layout = plan_layout(mesh, COUNTS, wh.NUTS())
    assert layout.of_member(jnp.zeros(12)).spec == P()


@four
@pytest.mark.slow
def test_particles_on_devices():
    engine = wh.TemperedSMC(particles=128)
    one = wh.infer(LINE, engine, key=KEY)
    other = wh.infer(LINE, engine, key=KEY, mesh=wh.mesh(particle=4))
    assert_allclose(one.log_evidence, other.log_evidence, rtol=1e-9)
    assert_allclose(one["slope"], other["slope"], rtol=1e-7)


@four
def test_particles_are_divided():
    engine = wh.TemperedSMC(particles=256)
    layout = plan_layout(wh.mesh(particle=4), LINE, engine)
    plan = build_plan(LINE, engine, KEY, 1, False, layout)
    data = eqx.filter((LINE, engine, None), is_data)
    number, start, stop = np.zeros(1, np.int32), np.int32(0), np.int32(1)
    state, _, _ = plan.program.call(data, plan.state, KEY, number, start, stop)
    cloud = [leaf for leaf in jax.tree.leaves(state) if leaf.shape[:2] == (1, 256)]
    assert len(cloud) > 2
    for leaf in cloud:
        assert leaf.sharding.shard_shape(leaf.shape)[:2] == (1, 64)


@four
@pytest.mark.slow
def test_coupled_chains_on_devices():
    engine = wh.ChEES(chains=16, warmup=300, draws=200)
    _check_counts(wh.infer(COUNTS, engine, key=KEY, mesh=wh.mesh(chain=4)))


# -- with four devices: refusals ---------------------------------------------------


@four
@pytest.mark.parametrize(
    ("sizes", "engine", "message"),
    [
        ({"chain": 4}, wh.NUTS(chains=6), r"`mesh` has chain=4, which must divide the 6 ch"),
        ({"chain": 4}, wh.ChEES(chains=6), "must divide the 6 chains of ChEES"),
        ({"chain": 4}, wh.BBVI(), "BBVI has no chains to divide"),
        ({"particle": 4}, wh.NUTS(), "NUTS runs chains; use 'chain'"),
        ({"particle": 4}, wh.BBVI(), "has no particles"),
        ({"particle": 4}, wh.TemperedSMC(particles=1001), "must divide the 1001 particles"),
        ({"data": 4}, wh.NUTS(), "the 14 rows of the data; leave out 2"),
    ],
)
def test_mesh_that_does_not_suit(sizes, engine, message):
    target = wh.condition(Counts(), np.zeros(14, int), np.ones(14))
    with pytest.raises(ValueError, match=message):
        wh.infer(target, engine, key=KEY, mesh=wh.mesh(**sizes))


@four
def test_rows_need_a_target_with_data():
    target = wh.from_log_density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    with pytest.raises(ValueError, match="product over data rows"):
        wh.infer(target, wh.NUTS(), key=KEY, mesh=wh.mesh(data=2))


@four
def test_axes_have_known_names():
    mesh = Mesh(np.array(jax.devices()), ("replica",))
    with pytest.raises(ValueError, match="got 'replica'"):
        wh.infer(COUNTS, wh.NUTS(), key=KEY, mesh=mesh)
