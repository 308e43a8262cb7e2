"""Units and steps that bring chains to where they are to be, from far and in odd units."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh
from whence.core._target import AbstractDataTarget, AbstractTarget
from whence.inference.sgmcmc import Curvature, Identity
from whence.inference.sgmcmc._tuning import Tuning, chosen, descending, look

UNITS = np.array([1e-4, 1.0, 1e3])


class Means(AbstractDataTarget):
    """Means of columns in odd units under a flat prior: independent, of variance `s^2 / n`."""

    y: jax.Array  # (data, 3), in units
    scale: jax.Array

    @property
    def num_data(self):
        return len(self.y)

    def init(self, *, key):
        return jr.normal(key, self.scale.shape)

    def log_prior(self, position):
        return jnp.zeros(())

    def log_likelihood(self, position, rows=None):
        y = self.y if rows is None else self.y[rows]
        return -0.5 * jnp.sum((y - (position / self.scale)[None]) ** 2, 1)

    def log_density(self, position):
        return self.log_likelihood(position).sum()

    def constrain(self, position):
        return position


@pytest.mark.parametrize(
    "engine",
    [wh.SGLD(batch_size=20, batching="iid"), wh.SGNHT(batch_size=20)],
    ids=lambda engine: engine.name,
)
def test_chains_arrive_from_far_in_odd_units(engine, key):
    """Starts are 3e5 standard deviations off, and a chain of SGLD forgets in 500 updates."""
    n = 1_000
    y = np.random.default_rng(0).normal(size=(n, 3))
    target = Means(jnp.asarray(y), jnp.asarray(UNITS))
    engine = dataclasses.replace(engine, chains=20, steps=6_000, thin=20, checks=0.0)
    posterior = wh.infer(target, engine, key=key, progress=False)
    x = (np.asarray(posterior.sample.positions) / UNITS - y.mean(0)) * n**0.5
    # Chains are independent; their means and mean squares give the errors.
    each, squares = x.mean(axis=1), (x**2).mean(axis=1)
    error = each.std(axis=0, ddof=1) / 20**0.5
    assert (error < 0.3).all()
    # Of t with 19 degrees of freedom 1 in 4,000 is beyond 4.5, and there are three.
    assert (np.abs(each.mean(axis=0)) < 4.5 * error).all()
    error = squares.std(axis=0, ddof=1) / 20**0.5
    assert (error < 0.25).all()
    assert (np.abs(squares.mean(axis=0) - 1) < 4.5 * error + 0.1).all()  # 5% is for the step


def test_units_and_long_steps_are_for_half_of_warmup(key):
    n = 50
    target = Means(
        jnp.asarray(np.random.default_rng(1).normal(size=(n, 3))), jnp.asarray(UNITS)
    )
    engine = wh.SGNHT(batch_size=5, warmup=16, thin=2, steps=40)
    assert engine.schedule.warmup == 8
    step = jax.jit(lambda s, i: engine.step(target, s, i, key=jr.fold_in(key, i)))
    state, scales, sizes, heats = engine.init(target, key=key), [], [], []
    for i in range(10):
        state, info = step(state, jnp.int32(i))
        scales.append(np.asarray(state.scale[0]))
        sizes.append(float(info.stats["step_size"]))
        heats.append(float(state.thermostat))
    # Rows are alike in curvature, so that any product tells it: `n / s^2`.
    assert_allclose(scales[3] * n / UNITS**2, 1, rtol=0.05)
    assert (scales[2] != scales[3]).any()
    for later in scales[4:]:
        assert_array_equal(later, scales[3])
    assert_allclose(sizes[0], 0.3, rtol=0.05)  # `h sqrt(L)`
    assert sizes[8] == sizes[9]
    assert_array_equal(heats[:4], 1)
    assert heats[4] != 1


def test_lengths_of_rows():
    """With a diagonal Hessian a product tells them; else by iteration, up to chance."""
    part, state = Curvature(), Curvature().init(jnp.zeros(4))
    own, flat = jnp.asarray([1e12, -1e-4, 4.0, 0.0]), jnp.zeros(4)
    scaled = lambda _, state: part.turned(state, own * state[0], flat)
    state = jax.lax.fori_loop(0, 200, scaled, state)
    assert_allclose(state[0], [1e-12, 1e4, 0.25, 1.0], rtol=1e-5)  # none tells nothing
    rng = np.random.default_rng(2)
    columns = rng.normal(size=(40, 5)) + rng.normal(size=(40, 1))
    columns = columns * 10.0 ** np.arange(-5, 5, 2)
    hessian = jnp.asarray(columns.T @ columns)

    def turned(i, state):
        root = jnp.sqrt(state[0])
        signs = jr.rademacher(jr.key(i), (5,), root.dtype)
        return part.turned(state, root * (hessian @ (root * signs)), jnp.zeros(5))

    state = jax.lax.fori_loop(0, 300, turned, part.init(jnp.zeros(5)))
    root = np.sqrt(np.asarray(state[0]))
    lengths = np.linalg.norm(root[:, None] * hessian * root[None], axis=1)
    assert (np.abs(np.log(lengths)) < np.log(3)).all()


def test_lengths_follow_a_longer_row_at_once_and_no_slope_into_the_flat():
    part, state = Curvature(), (jnp.ones(3), jnp.int32(1_000))
    product, slope = jnp.asarray([100.0, 1e-6, 1e-6]), jnp.asarray([0.0, 0.0, 1.1])
    after, count = part.turned(state, product, slope)
    assert_allclose(after, [100**-0.5, 0.1**-0.05, 1.0])
    assert count == 1_001


def test_what_is_seen_on_the_way_in():
    """Units first, in which curvature and noise are then measured; noise is of now alone."""
    own, kicks = jnp.asarray([4.0, 100.0]), jnp.asarray([1.0, -1.0])

    def product(direction, i):
        return kicks * jnp.where(i % 2 == 0, 1.0, 3.0), -own * direction

    start = dataclasses.replace(
        Tuning.start(jnp.zeros(2), key=jr.key(0)), noise=jnp.full(2, 1e9), count=jnp.int32(7)
    )
    scale = Curvature().init(jnp.zeros(2))
    found, (after, count) = look(start, product, Curvature(), scale, 30, True, key=jr.key(1))
    assert_allclose(after, 1 / own, rtol=1e-6)
    assert count == 30
    assert found.count == 1
    assert_allclose(found.curvature, 1, rtol=1e-6)
    assert_allclose(found.noise, 2 / own, rtol=1e-6)  # half of the square of 3 - 1, in units
    seen = np.where(np.arange(31, 60) % 2 == 0, 1.0, 9.0).mean() / 4
    assert_allclose(found.square, seen, rtol=1e-6)
    # Of batches that differ: `|H v|^2 / v' H v`, no more than four times the length.
    for extra, expected in ((2.0, 5.0), (100.0, 4 * (1 + 100.0**2) ** 0.5)):
        matrix = jnp.asarray([[1.0, 0.0], [extra, 0.0]])
        begin = dataclasses.replace(start, direction=jnp.asarray([1.0, 0.0]))
        turned = lambda d, i, m=matrix: (jnp.zeros(2), jnp.where(i == 0, 1.0, 0.0) * (m @ d))
        once = look(begin, turned, Identity(), None, 1, key=jr.key(1))[0]
        assert_allclose(once.curvature, expected, rtol=1e-6)


def known(curvature, noise, square):
    values = map(jnp.asarray, (curvature, noise, 0.0, np.int32(1), square))
    return Tuning(jnp.ones(len(noise)), *values)


@pytest.mark.parametrize("word", ["E", "BAOA"])
def test_steps_on_the_way_in(word):
    noisy = known(4.0, [4e4], 0.0)
    settled = chosen(noisy, None, word, 0)
    at = lambda x: descending(noisy, settled, None, word, jnp.asarray(x))
    first = {"E": (0.5 / 4, 1.0), "BAOA": (0.3 / 2, 0.2 * 2)}[word]
    assert_allclose(at(0.0), first, rtol=1e-6)
    assert_allclose(at(1.0), settled, rtol=1e-6)
    assert_allclose(at(0.25), np.asarray(first) ** 0.75 * np.asarray(settled) ** 0.25)
    quick = (jnp.asarray(10.0), jnp.asarray(1.0))  # never slower than in the end
    assert_array_equal(descending(noisy, quick, None, word, jnp.asarray(0.5)), quick)
    if word != "E":
        given = chosen(noisy, 3.0, word, 0)
        assert_allclose(descending(noisy, given, 3.0, word, jnp.asarray(0.5))[1], 3)


def test_gradients_out_of_proportion_are_shortened():
    """To twice the root of what was seen, and of what curvature and momenta explain."""
    tuning = known(3.0, [0.0, 0.0], 4.0)
    gradient, root = jnp.asarray([-100.0, 1.0]), jnp.asarray([0.5, 2.0])
    most = 2 * (4 + 3 * (1 + 9)) ** 0.5
    assert_allclose(tuning.limit(gradient, root, jnp.asarray([1.0, -3.0])), most / 50)
    assert tuning.limit(0.01 * gradient, root, jnp.zeros(0)) == 1


class Quartic(AbstractTarget):
    """Flat where chains start, and steep a unit of the curvature there away."""

    def init(self, *, key):
        return 0.1 * jr.normal(key, (1,))

    def log_density(self, position):
        return -jnp.sum(position**4) / 4

    def constrain(self, position):
        return position


def test_no_chain_is_thrown_out_of_a_flat(key):
    """A unit there is 1 over the root of three squares; noise alone goes as far as that."""
    target, engine = Quartic(), wh.SGLD(steps=2_000, thin=10)

    def chain(key):
        state = engine.init(target, key=key)
        step = lambda i, s: engine.step(target, s, i, key=jr.fold_in(key, i))[0]
        return jax.lax.fori_loop(0, 5, step, state)

    states = jax.jit(jax.vmap(chain))(jr.split(key, 100))
    assert_array_equal(states.nonfinite_at, -1)
    assert (np.abs(states.position) < 1e3).all()


def test_batches_of_the_first_look_are_of_an_epoch(key):
    target = Means(jnp.ones((20, 3)), jnp.ones(3))
    epoch = wh.SGHMC(batch_size=5).init(target, key=key).epoch
    assert_array_equal(np.sort(epoch), np.arange(20))
