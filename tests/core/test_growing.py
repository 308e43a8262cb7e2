"""Data that come row by row: rows that are not there yet count nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import whence as wh
from whence.core import GrowingTarget, rows_so_far
from whence.testing import Gaussian


class Line(wh.Model):
    slope: jax.Array = wh.latent(dist.Normal(0.0, 1.0))
    scale: jax.Array = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self, x):
        return dist.StudentT(3.0, self.slope * x, self.scale)


X = np.linspace(-1.0, 2.0, 6)
Y = np.array([0.3, -0.2, 0.8, 1.0, 2.5, 1.1])


def test_rows_that_are_filled_are_those_that_count(key):
    whole = wh.condition(Line(), Y, X)
    position = whole.init(key=key)
    for filled in (0, 1, 4, 6):
        growing = GrowingTarget(whole, jnp.asarray(filled))
        assert growing.num_data == 6
        assert rows_so_far(growing) == filled
        assert_allclose(growing.log_likelihood(position)[filled:], 0.0)
        if filled == 0:
            assert_allclose(growing.log_density(position), whole.log_prior(position))
            continue
        part = wh.condition(Line(), Y[:filled], X[:filled])
        got = jax.value_and_grad(growing.log_density)(position)
        want = jax.value_and_grad(part.log_density)(position)
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-12), got, want)
    assert rows_so_far(whole) == 6


def test_rows_by_number(key):
    whole = wh.condition(Line(), Y, X)
    growing = GrowingTarget(whole, jnp.asarray(3))
    position = whole.init(key=key)
    rows = jnp.array([5, 2, 3, 0])
    each = whole.log_likelihood(position)
    want = np.where(rows < 3, each[rows], 0.0)
    assert_allclose(growing.log_likelihood(position, rows), want)


def test_other_rows_and_counts_are_leaves(key):
    whole = wh.condition(Line(), Y, X)
    position, count = whole.init(key=key), 0

    @jax.jit
    def value(target):
        nonlocal count
        count += 1
        return target.log_density(position)

    for filled in (2, 5):
        other = dataclasses.replace(whole, y=whole.y + filled)
        assert np.isfinite(value(GrowingTarget(other, jnp.asarray(filled))))
    assert count == 1


def test_a_target_without_a_prior_to_draw_from_says_so(key):
    whole = wh.condition(Line(), Y, X)
    growing = GrowingTarget(whole, jnp.asarray(1))
    same = jax.tree.map(
        assert_allclose,
        growing.sample_prior_position(key=key),
        whole.sample_prior_position(key=key),
    )
    assert len(same) == 2
    with pytest.raises(ValueError, match="Gaussian without rows"):
        wh.DataTemperedSMC().validate(Gaussian(2))
