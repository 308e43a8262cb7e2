"""Fits by batches of many rows arrive where all rows say, by the tangent at an anchor."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.core._target import AbstractDataTarget
from whence.inference.variational import BBVI, MeanField
from whence.inference.variational._anchor import Anchor, renewed
from whence.inference.variational._batch import Batch
from whence.running._infer import infer


class Rates(AbstractDataTarget):
    """Counts with known exposures and a common log rate, `x[0] - x[1]`, and its complement."""

    y: jax.Array
    exposure: jax.Array

    @property
    def num_data(self):
        return len(self.y)

    def init(self, *, key):
        return jr.uniform(key, (2,), self.exposure.dtype, -2, 2)

    def log_prior(self, position):
        return -0.5 * position[1] ** 2

    def log_likelihood(self, position, rows=None):
        y, exposure = (self.y, self.exposure)
        if rows is not None:
            y, exposure = y[rows], exposure[rows]
        return y * position[0] - exposure * jnp.exp(position[0])

    def log_density(self, position):
        return self.log_prior(position) + self.log_likelihood(position).sum()

    def constrain(self, position):
        return position


@pytest.fixture(scope="module")
def rates():
    rng = np.random.default_rng(0)
    exposure = rng.gamma(0.5, 2, 200_000)
    y = rng.poisson(3 * exposure)
    f32 = lambda x: jnp.asarray(x, jnp.float32)
    return Rates(f32(y), f32(exposure)), np.log(y.sum() / exposure.sum()), y.sum() ** -0.5


def test_batches_of_many_rows_arrive(rates):
    target, mode, sd = rates
    engine = BBVI(batch_size=100, steps=2_000, draws=1_000, checked=200)
    posterior = infer(target, engine, key=3)
    fit = posterior.record.parameters
    # By its own 2,000 batches alone, a mean is known to a standard deviation; the mode differs
    # from the mean by a thousandth of it.
    assert_allclose((fit["loc"] - [mode, 0]) / [sd, 1], 0, atol=0.05)
    assert_allclose(fit["scale"] / [sd, 1], 1, atol=0.05)
    # The trace is of the bound itself, and not of a batch's idea of it.
    constant = target.log_density(jnp.asarray([mode, 0], jnp.float32))
    bound = float(constant) + np.log(2 * np.pi * sd)
    assert_allclose(posterior.record.elbo[-20:], bound, atol=1.0)


def test_the_correction_is_unbiased_at_every_distance(rates):
    target, mode, sd = rates
    number = 50
    small = Rates(target.y[:number], target.exposure[:number])
    point = jnp.asarray([mode + 1, 2.0], jnp.float32)
    value, slope = jax.value_and_grad(small.log_density)(point)
    anchor = Anchor(point, value, slope, jnp.asarray(True))
    positions = jnp.asarray([[mode, 0.0], [mode - 2, 1.0]], jnp.float32)
    params = MeanField().init(positions[0])
    # The mean over all batches of one row.
    batch = lambda row: Batch.of(small, MeanField(), params, row[None])
    estimate = lambda row, x: batch(row)._replace(anchor=anchor).log_densities(x)
    rows = jnp.arange(number, dtype=jnp.int32)
    each = jax.vmap(lambda row: estimate(row, positions))(rows)
    assert_allclose(each.mean(0), jax.vmap(small.log_density)(positions), rtol=1e-5)
    # At the anchor there is no noise.
    at = jax.vmap(lambda row: estimate(row, point[None]))(rows)
    assert_allclose(at[:, 0], np.full(number, value), rtol=1e-5)


def test_an_anchor_that_makes_more_noise_is_not_used(rates, key):
    target, mode, sd = rates
    params = MeanField().init(jnp.asarray([mode, 0.0], jnp.float32))
    params |= {"log_scale": jnp.log(jnp.asarray([sd, 1.0], jnp.float32))}

    def helps(distance):
        # Not at a block of updates that takes another anchor.
        point = jnp.asarray([mode + distance, 0.0], jnp.float32)
        old = Anchor(point, *jax.value_and_grad(target.log_density)(point), jnp.asarray(False))
        index, sizes = jnp.asarray(100, jnp.int32), (10_000, 1, 10, 100)
        new = renewed(old, target, MeanField(), params, index, sizes, key=key)
        assert_allclose(new.point, point)
        return bool(new.helps)

    assert helps(sd)
    assert not helps(3.0)
