"""Positions as flat vectors, and the search for a finite start."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpy.testing import assert_array_equal

from whence.core import MAX_STARTS, find_start, flat_init, flat_view, position_shapes
from whence.core._target import AbstractTarget


class Nested(AbstractTarget):
    def init(self, *, key):
        return {"a": jr.normal(key, (2, 3)), "b": jnp.ones(())}

    def log_density(self, position):
        return -jnp.sum(position["a"] ** 2) - position["b"] ** 2

    def constrain(self, position):
        return position


def test_flat_view_there_and_back(key):
    target = Nested()
    zeros, unravel = flat_view(target)
    assert_array_equal(zeros, np.zeros(7))
    position = target.init(key=key)
    jax.tree.map(assert_array_equal, unravel(flat_init(target, key=key)), position)
    assert jax.tree.map(jnp.shape, position) == jax.tree.map(
        lambda s: s.shape, position_shapes(target)
    )


def test_the_first_finite_start_is_taken(key):
    tried = np.asarray([jr.uniform(jr.fold_in(key, i)) for i in range(MAX_STARTS)])

    def search(bound):
        def attempt(key):
            x = jr.uniform(key)
            return x, x > bound

        return jax.jit(lambda: find_start(attempt, jnp.zeros(()), key=key))()

    start, is_finite = search(0.8)
    assert is_finite
    assert start == tried[tried > 0.8][0]
    start, is_finite = search(2.0)
    assert not is_finite
    assert start == tried[-1]
