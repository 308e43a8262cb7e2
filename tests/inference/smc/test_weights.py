"""Arithmetic of weights against plain NumPy in double precision."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.inference.smc._weights import (
    conditional_ess_fraction,
    effective_sample_size,
    equal_log_weights,
    family_shares,
    normalise,
    zero_sum,
)


def test_effective_sample_size_runs_from_one_to_all():
    assert_allclose(effective_sample_size(equal_log_weights(37)), 37.0)
    one = jnp.where(jnp.arange(5) == 2, 0.0, -jnp.inf)
    assert_allclose(effective_sample_size(one), 1.0)


def test_normalise_survives_huge_offsets_and_reports_the_sum(key):
    raw = jr.normal(key, (50,)) * 30.0
    log_weights, total = normalise(raw + 1e6)
    assert_allclose(np.exp(np.asarray(log_weights)).sum(), 1.0)
    assert_allclose(total - 1e6, np.log(np.exp(np.asarray(raw)).sum()), rtol=1e-9)


def test_normalise_of_no_weight_at_all_is_not_nan():
    log_weights, total = normalise(jnp.full((4,), -jnp.inf))
    assert np.all(np.asarray(log_weights) == -np.inf)
    assert total == -np.inf


@pytest.mark.parametrize("delta", [1e-3, 0.2, 5.0])
def test_conditional_ess_is_its_definition(key, delta):
    key_weights, key_tilt = jr.split(key)
    log_weights, _ = normalise(3.0 * jr.normal(key_weights, (200,)))
    tilt = 10.0 * jr.normal(key_tilt, (200,)) - 4000.0
    w = np.exp(np.asarray(log_weights, np.longdouble))
    g = np.exp(delta * (np.asarray(tilt, np.longdouble) + 4000.0))
    want = (w @ g) ** 2 / (w @ g**2)
    got = conditional_ess_fraction(log_weights, tilt, jnp.asarray(delta))
    assert_allclose(got, float(want), rtol=1e-10)


def test_conditional_ess_on_equal_weights_is_the_ess_afterwards(key):
    tilt = jr.normal(key, (100,))
    after, _ = normalise(equal_log_weights(100) + 0.7 * tilt)
    got = conditional_ess_fraction(equal_log_weights(100), tilt, jnp.asarray(0.7))
    assert_allclose(got, effective_sample_size(after) / 100, rtol=1e-12)


def test_conditional_ess_is_of_the_particles_that_can_survive(key):
    tilt = jr.normal(key, (100,)).at[30:].set(-jnp.inf)
    tiny = conditional_ess_fraction(equal_log_weights(100), tilt, jnp.asarray(1e-12))
    assert_allclose(tiny, 1.0, rtol=1e-9)


def test_compensated_sum_keeps_what_float32_drops():
    terms = jnp.asarray([1e6] + [0.01] * 20_000, jnp.float32)

    def add(total, term):
        return total.add(term), None

    empty = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), zero_sum())
    total, _ = jax.lax.scan(add, empty, terms)
    plain, _ = jax.lax.scan(lambda s, t: (s + t, None), jnp.float32(0.0), terms)
    exact = np.asarray(terms, np.float64).sum()
    assert abs(float(plain) - exact) > 10.0  # the plain sum would not do
    assert_allclose(float(total.value), exact, atol=0.1)
    assert total.value.dtype == jnp.float32


def test_family_shares_add_the_weights_of_descendants():
    log_weights = jnp.log(jnp.asarray([0.1, 0.2, 0.3, 0.4]))
    shares = family_shares(log_weights, jnp.asarray([3, 0, 0, 3], jnp.int32))
    assert_allclose(shares, [0.5, 0.0, 0.0, 0.5], atol=1e-15)
