"""Sums over many rows, some at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.core._batches import sum_in_batches


@pytest.mark.parametrize("size", [1, 7])
def test_a_sum_in_batches_is_the_sum_of_each_row_once(size):
    x = np.random.default_rng(0).gamma(1.0, size=100_003).astype(np.float32)
    values = jnp.asarray(x)

    def terms(rows, inside):
        return {"sum": jnp.where(inside, values[rows], 0).sum(), "count": jnp.sum(inside)}

    start = {"sum": jnp.float32(-5.0), "count": jnp.asarray(0)}
    found = jax.jit(lambda: sum_in_batches(terms, len(x), size, start))()
    assert found["count"] == len(x)
    # To one rounding of the total; plain sums of 100,003 and 14,287 batches are not.
    eps = np.finfo(np.float32).eps
    assert_allclose(found["sum"], x.astype(float).sum() - 5, rtol=eps)
