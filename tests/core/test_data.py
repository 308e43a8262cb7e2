"""Minibatches: which rows, how often, and the scaling of the likelihood."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from whence.core._data import Minibatches, log_density_estimate, minibatches
from whence.core._target import AbstractDataTarget, AbstractTarget


class Quartic(AbstractDataTarget):
    """A likelihood that is not quadratic, so that its gradient differs by row and place."""

    y: jax.Array

    @property
    def num_data(self):
        return len(self.y)

    def init(self, *, key):
        return {"x": jnp.zeros((), self.y.dtype)}

    def log_prior(self, position):
        return -(position["x"] ** 2)

    def log_likelihood(self, position, rows=None):
        y = self.y if rows is None else self.y[rows]
        return -((y - position["x"]) ** 4)

    def log_density(self, position):
        return self.log_prior(position) + self.log_likelihood(position).sum()

    def constrain(self, position):
        return position


class NoData(AbstractTarget):
    def init(self, *, key):
        return jnp.zeros(2)

    def log_density(self, position):
        return -jnp.sum(position**2)

    def constrain(self, position):
        return position


def draw_rows(batches, count, key):
    """Rows of batches 0 to `count`, in one compiled scan."""

    def body(epoch, i):
        rows, epoch = batches.next(epoch, i, key=jr.fold_in(key, i))
        return epoch, rows

    return np.asarray(
        jax.jit(lambda: jax.lax.scan(body, batches.init(), jnp.arange(count))[1])()
    )


def test_every_row_once_in_each_epoch(key):
    batches = Minibatches(60, 12)
    assert batches.per_epoch == 5
    epochs = draw_rows(batches, 15, key).reshape(3, 60)
    assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(60), (3, 1)))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()


def test_tail_is_left_out_at_random(key):
    epochs = draw_rows(Minibatches(10, 4), 2 * 4_000, key).reshape(4_000, 8)
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    # Each row is in an epoch with probability 0.8.
    share = np.bincount(epochs.ravel(), minlength=10) / 4_000
    assert_allclose(share, 0.8, atol=4.5 * np.sqrt(0.8 * 0.2 / 4_000))
    # And in its first batch with probability 0.4: one batch alone is unbiased.
    first = np.bincount(epochs[:, :4].ravel(), minlength=10) / 4_000
    assert_allclose(first, 0.4, atol=4.5 * np.sqrt(0.4 * 0.6 / 4_000))


def test_independent_batches_repeat_rows(key):
    rows = draw_rows(Minibatches(10, 4, "iid"), 4_000, key)
    share = np.bincount(rows.ravel(), minlength=10) / rows.size
    assert_allclose(share, 0.1, atol=4.5 * np.sqrt(0.1 * 0.9 / rows.size))
    # Four draws from ten are all different with probability 0.9 * 0.8 * 0.7.
    distinct = np.mean([len(set(row)) == 4 for row in rows])
    assert_allclose(distinct, 0.504, atol=4.5 * np.sqrt(0.504 * 0.496 / 4_000))


def test_average_over_an_epoch_is_the_full_gradient(key):
    target = Quartic(jr.normal(key, (60,)))
    position = {"x": jnp.asarray(0.7)}
    estimate = jax.jit(jax.value_and_grad(lambda x, r: log_density_estimate(target, x, r)))
    parts = [estimate(position, rows) for rows in draw_rows(Minibatches(60, 12), 5, key)]
    value, gradient = jax.value_and_grad(target.log_density)(position)
    assert_allclose(np.mean([p[0] for p in parts]), value, rtol=1e-12)
    assert_allclose(np.mean([p[1]["x"] for p in parts]), gradient["x"], rtol=1e-12)
    assert np.std([p[1]["x"] for p in parts]) > 1  # the parts differ


def test_independent_batches_are_unbiased(key):
    target = Quartic(jr.normal(key, (60,)))
    position = {"x": jnp.asarray(0.7)}
    gradient = jax.vmap(
        lambda rows: jax.grad(lambda x: log_density_estimate(target, x, rows))(position)["x"]
    )
    values = gradient(draw_rows(Minibatches(60, 6, "iid"), 20_000, key))
    exact = jax.grad(target.log_density)(position)["x"]
    assert_allclose(values.mean(), exact, atol=4.5 * values.std() / np.sqrt(20_000))


def test_all_rows(key):
    target = Quartic(jr.normal(key, (20,)))
    batches = minibatches(target, None)
    rows, epoch = batches.next(batches.init(), jnp.asarray(3), key=key)
    assert rows is None
    assert epoch.size == 0
    position = {"x": jnp.asarray(0.3)}
    assert_allclose(log_density_estimate(target, position, rows), target.log_density(position))
    every = log_density_estimate(target, position, jnp.arange(20))
    assert_allclose(every, target.log_density(position), rtol=1e-12)


def test_a_target_without_data_has_one_batch(key):
    batches = minibatches(NoData(), None)
    rows, _ = batches.next(batches.init(), jnp.asarray(0), key=key)
    assert log_density_estimate(NoData(), jnp.ones(2), rows) == -2.0


def test_permutation_is_one_branch_even_for_many_chains(key):
    batches = Minibatches(60, 12)
    states = jnp.zeros((4, 60), jnp.int32)

    def many(epochs, counter, keys):
        return jax.vmap(lambda e, k: batches.next(e, counter, key=k))(epochs, keys)

    jaxpr = jax.make_jaxpr(many)(states, jnp.asarray(0), jr.split(key, 4))
    assert "cond[" in str(jaxpr)
    rows, _ = many(states, jnp.asarray(0), jr.split(key, 4))
    assert len({tuple(r) for r in np.asarray(rows).tolist()}) == 4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_estimate_keeps_the_dtype(dtype, key):
    target = Quartic(jr.normal(key, (20,), dtype))
    value = log_density_estimate(target, target.init(key=key), jnp.arange(5))
    assert value.dtype == dtype


def test_invalid_input(key):
    target = Quartic(jr.normal(key, (20,)))
    with pytest.raises(ValueError, match="at most the number of data rows, 20; got 21"):
        minibatches(target, 21)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, .* got 0"):
        minibatches(target, 0)
    with pytest.raises(
        ValueError, match="`mode` must be one of 'reshuffle', 'iid', 'symmetric'; got 'sorted'"
    ):
        minibatches(target, 5, "sorted")
    with pytest.raises(ValueError, match="got 5 with NoData"):
        minibatches(NoData(), 5)
