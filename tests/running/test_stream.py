"""Data that are made in the program, or read slab by slab from disk."""

import re
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import whence as wh
from whence.core import log_density_estimate
from whence.core._stream import Slabs

N = 1_003


class Line(wh.Model):
    slope: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, x):
        return dist.Normal(self.slope * x, 0.5)


def _arrays(tmp_path, rows=N):
    """Arrays on disk, and the exact posterior of their slope."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=rows)
    y = 0.7 * x + 0.5 * rng.normal(size=rows)
    files = []
    for name, values in (("y", y), ("x", x)):
        np.save(tmp_path / f"{name}.npy", values)
        files.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    precision = 1 + (x**2).sum() / 0.25
    return tuple(files), (x * y).sum() / 0.25 / precision, precision**-0.5


def test_slabs_see_every_row_equally_often():
    rows = np.arange(10)
    slabs = Slabs((rows, 2 * rows), 4)
    seen = np.zeros(10, int)
    for index in range(2 * 4_000):  # 4,000 epochs of 2 slabs
        y, x = slabs.read(index)
        assert np.array_equal(x, 2 * y)
        assert len(set(y.tolist())) == 4
        seen[y] += 1
    # Each epoch has 8 of 10 rows: 3,200 expected, at most 1 a row and epoch.
    assert np.all(np.abs(seen - 3_200) < 5 * np.sqrt(4_000 * 0.8 * 0.2))
    again = Slabs((rows, 2 * rows), 4)
    assert np.array_equal(again.read(5)[0], slabs.read(5)[0])


def test_estimate_of_the_density_is_unbiased_over_slabs(tmp_path):
    arrays, *_ = _arrays(tmp_path, rows=12)
    target = wh.condition(Line(), wh.Stream(arrays, slab=4))
    whole = wh.condition(Line(), *map(np.asarray, arrays))
    position = {"slope": jnp.asarray(0.3)}
    batches = jnp.asarray([[0, 1], [2, 3]], jnp.int32)
    slabs = [target.with_slab(number) for number in range(1_200)]
    rows_of = jax.tree.map(
        lambda *x: np.stack(x), *(eqx.filter(s, eqx.is_array) for s in slabs)
    )
    rest = eqx.filter(target, eqx.is_array, inverse=True)

    def estimates(arrays):
        now = eqx.combine(arrays, rest)
        return jnp.stack([log_density_estimate(now, position, rows) for rows in batches])

    offset_mean = np.asarray(jax.jit(jax.vmap(estimates))(rows_of)).ravel()
    want = whole.log_density(position)
    error = np.std(offset_mean) / np.sqrt(len(offset_mean))
    assert abs(np.mean(offset_mean) - want) < 4 * error
    # Slabs of one epoch cover all twelve rows: their sum is exact.
    np.testing.assert_allclose(np.mean(offset_mean[:6]), want, rtol=1e-6)


def test_sgld_on_a_stream_from_disk_finds_the_posterior(tmp_path):
    arrays, mean, std = _arrays(tmp_path)
    target = wh.condition(Line(), wh.Stream(arrays, slab=500))
    engine = wh.SGLD(batch_size=50, step_size=1e-5, steps=20_000, chains=2, thin=5)
    posterior = wh.infer(target, engine, key=0)
    slope = posterior["slope"]
    # Noise of batches, h V / 2 = 0.4, gives 1.2 times the standard deviation; the mean of 500
    # rows alone is off by one.
    assert abs(slope.mean() - mean) < 0.3 * std
    assert 1.0 < slope.std() / std < 1.4
    assert posterior.num_draws == slope.shape[1]
    tree = posterior.to_datatree()
    assert "observed_data" not in tree.children or not tree["observed_data"].data_vars
    assert posterior.predict(jnp.asarray([1.0, 2.0]), key=1).shape[2:] == (2,)


def test_resume_goes_on_at_the_right_row(tmp_path):
    arrays, *_ = _arrays(tmp_path)
    stream = wh.Stream(arrays, slab=100)
    target = wh.condition(Line(), stream)
    engine = wh.SGLD(batch_size=20, step_size=1e-5, steps=600, chains=2, thin=2)
    whole = wh.infer(target, engine, key=0, store=tmp_path / "whole")
    calls = 0

    class Stops(Slabs):
        """Breaks off after some slabs, as a disk that fails."""

        __slots__ = ()

        def read(self, index):
            nonlocal calls
            calls += 1
            if calls > 100:
                raise KeyboardInterrupt
            return super().read(index)

    broken = eqx.tree_at(lambda t: t.stream.source, target, Stops(arrays, 100))
    calls = 0
    with pytest.warns(wh.InferenceWarning):
        wh.infer(broken, engine, key=0, store=tmp_path / "part", threads=1)
    part = wh.resume(tmp_path / "part", wh.condition(Line(), wh.Stream(arrays, slab=100)))
    assert np.array_equal(part["slope"], whole["slope"])
    assert wh.infer(target, engine, key=0, chunk_steps=7)["slope"] == pytest.approx(
        np.asarray(whole["slope"]), abs=0
    )


def test_a_function_makes_batches_inside_the_program():
    def source(key):
        key_x, key_noise = jr.split(key)
        x = jr.normal(key_x, (25,))
        return 0.7 * x + 0.5 * jr.normal(key_noise, (25,)), x

    target = wh.condition(Line(), wh.Stream(source, num_data=1_000))
    assert target.num_data == 1_000
    assert wh.check(target).ok
    position = {"slope": jnp.asarray(0.3)}
    numbers = jr.randint(jr.key(0), (4_000, 25), 0, 2**31 - 1, jnp.int32)
    estimates = jax.vmap(lambda n: log_density_estimate(target, position, n))(numbers)
    # y - 0.3 x has variance 0.25 + 0.16: E log N(y; 0.3 x, 0.5) in closed form.
    each = -0.5 * np.log(2 * np.pi * 0.25) - 0.5 * 0.41 / 0.25
    want = float(dist.Normal(0.0, 1.0).log_prob(jnp.asarray(0.3))) + 1_000 * each
    assert abs(estimates.mean() - want) < 4 * estimates.std() / np.sqrt(4_000)
    fit = wh.infer(target, wh.BBVI(batch_size=25, steps=2_000, samples=4), key=0)
    assert abs(fit["slope"].mean() - 0.7) < 0.1


def test_slabs_of_an_iterable_are_read_again():
    slabs = [(np.full(4, i), np.full(4, 1.0)) for i in range(3)]
    reader = Slabs(slabs, None)
    assert [int(reader.read(i)[0][0]) for i in (0, 1, 2, 3, 4, 0)] == [0, 1, 2, 0, 1, 0]
    once = Slabs(iter(slabs), None)
    assert int(once.read(2)[0][0]) == 2
    with pytest.raises(wh.InferenceError, match="ran dry at slab 3: .* cannot be read again"):
        once.read(3)


def test_a_slab_that_changes_is_named_and_draws_are_kept():
    slabs = [(np.ones(40), np.ones(40)), (np.ones(40), np.ones(40)), (np.ones(7), np.ones(7))]
    target = wh.condition(Line(), wh.Stream(slabs, num_data=120))
    engine = wh.SGLD(batch_size=20, step_size=1e-4, steps=40, warmup=0, chains=1, thin=1)
    with pytest.raises(wh.InferenceError, match="Slab 2 of the stream must have the shapes"):
        wh.infer(target, engine, key=0)
    bad = [slabs[0], (np.ones(40), np.full(40, np.nan))]
    target = wh.condition(Line(), wh.Stream(bad, num_data=80))
    with pytest.raises(wh.InferenceError, match="Slab 1 .*finite numbers; got nan in"):
        wh.infer(target, engine, key=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: wh.Stream(a), "`slab` must be a number of rows"),
        (lambda a: wh.Stream(a, slab=0), "`slab` must be"),
        (lambda a: wh.Stream(a, slab=5_000), "at most the 1003 there are; got 5000"),
        (lambda a: wh.Stream([a]), "`num_data` must be given"),
        (lambda a: wh.Stream([a], num_data=5, slab=3), "`slab` is for arrays"),
        (lambda a: wh.Stream(5, num_data=5), "must be a function of a key, arrays"),
        (lambda a: wh.Stream((a[0], a[1][:7]), slab=5), "the same number in all"),
        (lambda a: wh.condition(Line(), wh.Stream(a, slab=50), a[1]), "1 besides"),
    ],
)
def test_what_is_refused(make, message, tmp_path):
    arrays, *_ = _arrays(tmp_path)
    with pytest.raises(ValueError, match=message):
        make(arrays)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (wh.NUTS(), "NUTS needs all rows"),
        (wh.SGLD(step_size=1e-3), "SGLD needs all rows"),
        (
            wh.SGLD(step_size=1e-3, batch_size=20),
            "at least the 1000 rows .* got 100",
        ),
        (wh.SGLD(step_size=1e-3, batch_size=500), "`batch_size` must be at most"),
    ],
)
def test_engines_of_all_rows_are_refused(engine, message, tmp_path):
    arrays, *_ = _arrays(tmp_path)
    with pytest.raises(ValueError, match=message):
        wh.infer(wh.condition(Line(), wh.Stream(arrays, slab=100)), engine, key=0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what is mapped")
def test_pages_of_a_mapped_file_are_let_go(tmp_path):
    # Pages that stay mapped count as memory of the process: with 100 slabs, 80 MB.
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (200_000, 100))
    rows[:] = np.arange(200_000, dtype=np.float32)[:, None]
    del rows
    slabs = Slabs(np.load(tmp_path / "x.npy", mmap_mode="r"), 2_000)
    before, seen = mapped_kilobytes(), []
    for index in range(slabs.number):
        (slab,) = slabs.read(index)
        seen.append(slab[:, 0])
    assert mapped_kilobytes() - before < 10_000
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(200_000))


def mapped_kilobytes():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssFile:\s+(\d+) kB", status)[1])
