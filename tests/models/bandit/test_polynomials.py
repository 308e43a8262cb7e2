"""Logarithm and cosine of uniform variates against extended precision, and their law."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import stats

from whence.models.bandit._polynomials import cosine_of_turns, logarithm
from whence.models.bandit._student_t import noise_pair

# As users compile it: products and sums in one rounding.
OPTIMISED = {"xla_backend_optimization_level": 3}
TYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def _uniforms(dtype):
    """Multiples of the machine epsilon from 0 to 1: a comb, and both ends and quarters."""
    steps = int(1 / np.finfo(dtype).eps)
    comb = np.arange(0, 1_200_000, dtype=np.int64) * (steps // 1_200_000)
    near = np.arange(-3_000, 3_001)[:, None] + np.arange(5) * (steps // 4)
    every = np.unique(np.concatenate([comb, near.ravel()]))
    every = every[(every >= 0) & (every <= steps)]
    return (every / steps).astype(dtype)


def _units(got, exact):
    """Largest error in units in the last place."""
    if np.finfo(np.longdouble).nmant < 60:
        pytest.skip("no extended precision here to compare with")
    spacing = np.spacing(np.abs(exact).astype(got.dtype)).astype(np.longdouble)
    return (abs(np.asarray(got).astype(np.longdouble) - exact) / spacing).max()


@TYPES
def test_cosine_of_turns(dtype):
    turns = _uniforms(dtype)
    v = turns.astype(np.longdouble)
    pi = 4 * np.arctan(np.longdouble(1))
    quarter = np.where(v < 0.5, 0.25 - v, v - 0.75)  # where the cosine changes its sign
    exact = np.where(abs(quarter) < 0.1, np.sin(2 * pi * quarter), np.cos(2 * pi * v))
    assert _units(jax.jit(cosine_of_turns, compiler_options=OPTIMISED)(turns), exact) < 3
    ends = np.array([0, 0.25, 0.5, 0.75, 1], dtype)
    assert_array_equal(
        abs(np.asarray(cosine_of_turns(jnp.asarray(ends)))) < 1e-7, [0, 1, 0, 1, 0]
    )


@TYPES
def test_logarithm(dtype):
    small = np.finfo(dtype).tiny
    spread = np.geomspace(small, 1 / small, 100_000).astype(dtype)
    x = np.concatenate([_uniforms(dtype)[1:], spread])
    x = x[(x >= small) & np.isfinite(x)]
    assert (
        _units(
            jax.jit(logarithm, compiler_options=OPTIMISED)(x), np.log(x.astype(np.longdouble))
        )
        < 2
    )
    assert logarithm(jnp.ones((), dtype)) == 0


@TYPES
def test_noise_has_the_law_of_its_parts(dtype):
    """An exponential radius of mean 2, and an arcsine law that does not depend on it."""
    radius, coordinate = noise_pair(jr.key(1), (200_000,), dtype)
    assert radius.dtype == coordinate.dtype == dtype
    assert stats.kstest(radius, "expon", args=(0, 2)).pvalue > 1e-4
    assert stats.kstest(coordinate, "arcsine", args=(-1, 2)).pvalue > 1e-4
    normal = np.sqrt(np.asarray(radius)) * np.asarray(coordinate)
    assert stats.kstest(normal, "norm").pvalue > 1e-4
    assert abs(stats.spearmanr(radius, np.abs(coordinate))[0]) < 4.5 / np.sqrt(200_000)
    assert np.isfinite(radius).all()


def test_half_precision():
    radius, coordinate = noise_pair(jr.key(2), (1_000,), jnp.bfloat16)
    assert radius.dtype == coordinate.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(radius, float)).all()
    assert stats.kstest(np.asarray(radius, float), "expon", args=(0, 2)).pvalue > 1e-4
