"""The angle of two units against extended precision, and its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.models.nngp.network._arc_cosine import arcsine_angle, half_plane_angle


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_angle_is_right_to_rounding(dtype):
    if np.finfo(np.longdouble).nmant < 60:
        pytest.skip("no extended precision here to compare with")
    rng = np.random.default_rng(11)
    size = 20_000
    turn = np.concatenate([rng.uniform(0, np.pi, size), 10.0 ** rng.uniform(-12, 0, size)])
    radius = 10.0 ** rng.uniform(-4, 4, 2 * size)
    y, x = (np.abs(radius * np.sin(turn)).astype(dtype), (radius * np.cos(turn)).astype(dtype))
    exact = np.arctan2(y.astype(np.longdouble), x.astype(np.longdouble))
    got = np.asarray(jax.jit(half_plane_angle)(y, x))
    assert got.dtype == dtype
    error = np.abs(got - exact) / np.spacing(exact.astype(dtype))
    assert error.max() <= 3  # units in the last place
    signed = np.asarray(jax.jit(arcsine_angle)(x, y))
    exact = np.arctan2(x.astype(np.longdouble), y.astype(np.longdouble))
    error = np.abs(signed - exact) / np.spacing(np.abs(exact).astype(dtype))
    assert error.max() <= 3


def test_angle_at_corners_and_its_derivatives():
    y, x = (
        jnp.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
        jnp.array([0.0, 2.0, -2.0, 0.0, 1.0, -1.0]),
    )
    assert_allclose(half_plane_angle(y, x), np.arctan2(y, x), rtol=1e-15)
    for at in ((0.3, 2.0), (2.0, 0.3), (0.7, -0.6)):
        ours, truth = (
            jax.grad(f, argnums=(0, 1))(*jnp.array(at)) for f in (half_plane_angle, jnp.arctan2)
        )
        assert_allclose(ours, truth, rtol=1e-13)
    assert np.all(np.isfinite(jax.grad(half_plane_angle, argnums=(0, 1))(*jnp.zeros(2))))
