"""Dual averaging."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.inference.hmc._step_size import dual_averaging


def test_against_the_published_recursion():
    """Hoffman and Gelman (2014), algorithm 5, written out for three steps."""
    state = dual_averaging(jnp.asarray(0.5))
    error, log_mean = 0.0, 0.0
    for m, rate in enumerate((0.1, 1.0, 0.7), start=1):
        state = state.update(jnp.asarray(rate), 0.8)
        error = (1 - 1 / (m + 10)) * error + (0.8 - rate) / (m + 10)
        log_step = np.log(5.0) - np.sqrt(m) / 0.05 * error
        log_mean = m**-0.75 * log_step + (1 - m**-0.75) * log_mean
        assert_allclose(state.log_step, log_step)
        assert_allclose(state.log_mean, log_mean)


@pytest.mark.parametrize(("relaxation", "anchor"), [(0.05, 10.0), (0.2, 1.0)])
@pytest.mark.parametrize("start", [1e-2, 1.0, 1e2])
def test_finds_the_rate(start, relaxation, anchor, key):
    """Acceptance is noisy and falls with the step size: `exp(-step)` on average."""

    def body(state, key):
        rate = jnp.exp(-jnp.exp(state.log_step))
        rate = jr.bernoulli(key, rate).astype(float)
        return state.update(rate, 0.8, relaxation=relaxation), None

    start = dual_averaging(jnp.asarray(start), anchor=anchor)
    state, _ = jax.lax.scan(body, start, jr.split(key, 4000))
    # 4000 coin tosses: standard error 0.006 of the rate, and the average forgets.
    assert_allclose(np.exp(-np.exp(state.log_mean)), 0.8, atol=0.04)


def test_not_a_number_counts_as_rejection():
    state = dual_averaging(jnp.asarray(0.5))
    bad, zero = state.update(jnp.asarray(jnp.nan), 0.8), state.update(jnp.asarray(0.0), 0.8)
    assert_allclose(bad.log_step, zero.log_step)
