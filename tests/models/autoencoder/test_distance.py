"""Sliced distances against closed forms, orderings and other computations."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import gamma
from scipy.stats import wasserstein_distance

from whence.models import autoencoder
from whence.models.autoencoder.distance._distributional import maximise
from whence.models.autoencoder.distance._sliced import (
    _sliced,
    directions,
    powers,
    wasserstein_power,
)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (12, 4), (4, 12), (7, 5)])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_on_a_line_sizes_may_differ(n, m, p):
    rng = np.random.default_rng(n * m)
    a, b = rng.normal(size=n), rng.normal(1, 2, size=m)
    together = np.lcm(n, m)
    long = lambda v: np.repeat(np.sort(v), together // len(v))
    power = np.mean(np.abs(long(a) - long(b)) ** p)
    assert_allclose(wasserstein_power(jnp.asarray(a), jnp.asarray(b), p), power, rtol=1e-12)
    if p == 1:
        assert_allclose(power, wasserstein_distance(a, b), rtol=1e-12)


def test_a_shift_has_closed_forms(key):
    dim, shift = 6, np.array([1.0, 0, 0, 2.0, 0, -1.0])
    x = np.random.default_rng(0).gamma(1.0, size=(40, dim))
    found = autoencoder.sliced_wasserstein(x, x + shift, key=key)
    assert_allclose(found.distance, np.linalg.norm(shift) / np.sqrt(dim), rtol=1e-6)
    assert found.error < 1e-6  # the control knows it
    plain = autoencoder.sliced_wasserstein(x, x + shift, key=key, p=1)
    mean = gamma(dim / 2) / (np.sqrt(np.pi) * gamma((dim + 1) / 2))
    assert abs(plain.power - np.linalg.norm(shift) * mean) < 4 * plain.error
    most = autoencoder.max_sliced_wasserstein(x, x + shift, key=key)
    assert_allclose(most.distance, np.linalg.norm(shift), rtol=1e-6)
    assert_allclose(np.abs(most.direction @ shift), np.linalg.norm(shift), rtol=1e-6)


def test_a_factor_has_a_closed_form(key):
    x = np.random.default_rng(1).normal(size=(50, 4)) * np.array([3.0, 1, 1, 0.2])
    found = autoencoder.sliced_wasserstein(x, 1.7 * x, key=key, control="none")
    truth = 0.7**2 * np.mean(np.sum(x**2, axis=1)) / 4
    assert abs(found.power - truth) < 4 * found.error


def test_gaussian_samples(key):
    """D = 5, means (1, 0, 0, 2, 0) apart, deviations 1 and 1.7: SW2 1.22066, max 2.34307."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2_000, 5))
    y = np.array([1.0, 0, 0, 2.0, 0]) + 1.7 * rng.normal(size=(2_000, 5))
    found = autoencoder.sliced_wasserstein(x, y, key=key, projections=200)
    # The samples' own error: that of a mean of 2,000, sqrt((1 + 1.7^2) / 2000) = 0.044.
    assert abs(found.distance - 1.22066) < 3 * 0.044
    plain = autoencoder.sliced_wasserstein(x, y, key=key, control="none", projections=200)
    assert found.error < 0.1 * plain.error
    assert abs(found.power - plain.power) < 4 * plain.error
    most = autoencoder.max_sliced_wasserstein(x, y, key=key, steps=60)
    assert abs(most.distance - 2.34307) < 0.15


@pytest.mark.parametrize("control", ["none", "gaussian"])
def test_reported_errors_are_those_of_the_estimates(control):
    """Over 200 choices of directions, whose own spread is then known to 5%."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(60, 3)) * np.array([3.0, 1, 0.3])
    y = rng.gamma(1.0, size=(40, 3))
    x, y = jnp.asarray(x), jnp.asarray(y)
    one = lambda k: _sliced.__wrapped__(x, y, k, 60, 2.0, control == "gaussian")
    power, error = jax.jit(jax.vmap(one))(jr.split(jr.key(0), 200))
    assert_allclose(np.sqrt(np.mean(error**2)) / np.std(power, ddof=1), 1, atol=0.25)
    many = np.mean(powers(x, y, directions(20_000, 3, x.dtype, key=jr.key(1))))
    assert abs(power.mean() - many) < 5 * np.std(power) / 200**0.5 + 0.01 * many


def test_control_where_laws_are_not_round(key):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1_500, 4)) * np.array([4.0, 1, 1, 0.1])
    y = rng.normal(size=(1_500, 4)) * np.array([0.5, 2, 1, 1])
    found = autoencoder.sliced_wasserstein(x, y, key=key, projections=200)
    plain = autoencoder.sliced_wasserstein(
        x, y, key=jr.key(9), projections=1_600, control="none"
    )
    assert found.error < plain.error  # with an eighth of the directions
    assert abs(found.power - plain.power) < 4 * np.hypot(plain.error, found.error)


# N(0, 2 I) and N(0, diag(5, 1)) in the plane; penalty, distance and concentration of the best
# law of directions among 90 angles.
PLANE = [(0.3, 0.7513, 0.657), (1.0, 0.6854, 0.517), (5.0, 0.6581, 0.501)]


@pytest.mark.parametrize(("penalty", "distance", "concentration"), PLANE)
def test_distributional_distance_in_the_plane(penalty, distance, concentration):
    """The best law has two atoms, a right angle apart; a smooth map comes near it.

    At a small penalty a network falls into the local optimum of one direction, as may happen.
    """
    power = lambda t: (jnp.sqrt(2.0) - jnp.sqrt(5 * t[:, 0] ** 2 + t[:, 1] ** 2)) ** 2
    search = (400, 600, penalty, 128, 0.05)
    seen, _ = maximise(power, 2, jnp.float64, search, key=jr.key(0))
    found, alike = map(float, seen)
    value = found - penalty * alike
    assert value < distance - penalty * concentration + 0.001
    assert found < np.sqrt(5) - np.sqrt(2) + 1e-9
    if penalty < 1:
        assert value > np.sqrt(5) - np.sqrt(2) - penalty - 0.01
    else:
        assert_allclose(found, distance, rtol=0.04)
        assert_allclose(alike, concentration, atol=0.03)


def test_without_a_penalty_it_is_the_largest(key):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(300, 3)), rng.normal(size=(300, 3)) * np.array([2.0, 1, 1])
    most = autoencoder.max_sliced_wasserstein(x, y, key=key)
    free = autoencoder.distributional_sliced_wasserstein(
        x, y, key=key, penalty=0, projections=50, learning_rate=0.02
    )
    mean = autoencoder.sliced_wasserstein(x, y, key=key)
    assert mean.distance < free.distance <= most.distance * 1.0001
    assert free.distance > 0.98 * most.distance
    bound = autoencoder.distributional_sliced_wasserstein(
        x, y, key=key, penalty=10, projections=50, learning_rate=0.02
    )
    assert bound.concentration < free.concentration
    assert bound.distance < free.distance
    along = bound.slicer(directions(7, 3, jnp.float64, key=key))
    assert_allclose(jnp.linalg.norm(along, axis=1), 1, rtol=1e-12)


def test_gradient_by_differences(key):
    rng = np.random.default_rng(5)
    x, y = jnp.asarray(rng.normal(size=(8, 3))), jnp.asarray(rng.normal(size=(6, 3)))
    along = directions(20, 3, jnp.float64, key=key)
    value = lambda x: powers(x, y, along).mean()
    slope, step = jax.grad(value)(x), 1e-6
    for i, j in [(0, 0), (3, 1), (7, 2)]:
        moved = [value(x.at[i, j].add(s * step)) for s in (1, -1)]
        assert_allclose((moved[0] - moved[1]) / (2 * step), slope[i, j], rtol=1e-6)
    order = rng.permutation(8)
    assert_allclose(value(x[order]), value(x), rtol=1e-12)


def test_wrong_samples_are_named(key):
    x = np.zeros((4, 2))
    with pytest.raises(ValueError, match=r"rows of one shape; got \(2,\) and \(3,\)"):
        autoencoder.sliced_wasserstein(x, np.zeros((4, 3)), key=key)
    with pytest.raises(ValueError, match="`y` must be finite"):
        autoencoder.sliced_wasserstein(x, x + np.nan, key=key)
    with pytest.raises(ValueError, match="`p` must be at least 1 and finite; got 0.5"):
        autoencoder.sliced_wasserstein(x, x, key=key, p=0.5)
