"""What is measured of a run, and the step sizes that follow, against closed forms."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

import whence as wh
from whence.core._target import AbstractTarget
from whence.inference.sgmcmc import _surrogate
from whence.inference.sgmcmc._checks import _tested
from whence.inference.sgmcmc._gradient import Space
from whence.inference.sgmcmc._surrogate import fit_surrogates
from whence.inference.sgmcmc._tuning import Tuning, chosen, inflation_by_noise
from whence.testing import GaussianMean

CURVATURES = np.array([2.0, 0.5])


class Gaussian(AbstractTarget):
    """Independent coordinates around zero."""

    def init(self, *, key):
        return jr.normal(key, (2,))

    def log_density(self, position):
        return -0.5 * jnp.sum(jnp.asarray(CURVATURES) * position**2)

    def constrain(self, position):
        return position


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("overdamped", [True, False])
def test_metropolis_test_of_an_update(overdamped, temperature, key):
    """The ratio of densities by hand, with step sizes by coordinate, at each of 30 points."""
    rng = np.random.default_rng(0)
    points, roots = rng.normal(size=(30, 2)), rng.uniform(0.5, 2.0, size=(30, 2))
    steps = rng.uniform(0.2, 0.9, size=30)
    engine = SimpleNamespace(
        temperature=temperature, parts=SimpleNamespace(overdamped=overdamped)
    )
    arguments = map(jnp.asarray, (points, roots, steps))
    one = lambda *arrays: _tested.__wrapped__(engine, Gaussian(), *arrays, key)
    found = jax.jit(one)(*arguments)
    each = zip(jr.split(key, 30), points, roots, steps, found, strict=True)
    for own, x, root, h, probability in each:
        noise, metric = np.asarray(jr.normal(own, (2,))), root**2
        density = lambda x: -0.5 * np.sum(CURVATURES * x**2) / temperature
        if overdamped:
            # As in an update: `h` on the gradient, noise of variance `2 h T`.
            mean = lambda x, m=metric, h=h: x - h * m * CURVATURES * x
            spread = 2 * h * temperature * metric
            y = mean(x) + np.sqrt(spread) * noise
            way = lambda a, b, m=mean, s=spread: -0.5 * np.sum((b - m(a)) ** 2 / s)
            ratio = density(y) - density(x) + way(y, x) - way(x, y)
        else:
            # A leapfrog step of length `h`, momenta of variance `T`.
            p = np.sqrt(temperature) * noise
            half = p - h / 2 * root * CURVATURES * x
            y = x + h * root * half
            q = half - h / 2 * root * CURVATURES * y
            kinetic = (p @ p - q @ q) / (2 * temperature)
            ratio = density(y) - density(x) + kinetic
        assert_allclose(probability, min(1.0, np.exp(ratio)), rtol=1e-9)
    assert np.ptp(found) > 0.01


def test_kinetic_temperature_and_inflation_of_a_cold_posterior(key):
    """SGHMC with exact gradients, against the stationary law of its linear map."""
    h, friction, temperature = 0.3, 1.0, 0.25
    engine = wh.SGHMC(
        step_size=h,
        friction=friction,
        temperature=temperature,
        steps=40_000,
        warmup=2_000,
        thin=8,
        checks=0.0,
    )
    record = wh.infer(Gaussian(), engine, key=key, progress=False).record
    kinetic, positions = [], []
    for a in CURVATURES:
        damped = 1 - friction * h
        matrix = np.array([[1, h], [-h * a, damped - h * h * a]])
        noise = np.diag([0, 2 * friction * h * temperature])
        law = np.linalg.solve(np.eye(4) - np.kron(matrix, matrix), noise.ravel()).reshape(2, 2)
        positions.append(law[0, 0] * a / temperature)
        kinetic.append(law[1, 1] / temperature)
    exact = np.mean(kinetic) * (1 - friction * h / 2)
    assert abs(np.mean(kinetic) - exact) > 10 * record.kinetic_error
    assert_allclose(record.kinetic, exact, atol=4.5 * record.kinetic_error)
    error = 4.5 * np.asarray(record.inflation_error[:2])
    assert np.all(error < 0.5)
    assert_allclose((record.inflation[:2] - np.asarray(positions)) / error, 0, atol=1)


def known(curvature=400.0, noise=(2e3, 5e3, 4e3), along=0.0):
    return Tuning(
        jnp.ones(len(noise)) / len(noise) ** 0.5,
        jnp.asarray(curvature),
        jnp.asarray(noise),
        jnp.asarray(along),
        jnp.int32(9),
        jnp.asarray(0.0),
    )


def test_noise_that_counts():
    """The one that nine tenths of the coordinates do not pass, or that of the direction."""
    many = known(noise=tuple(np.arange(101.0, 0, -1)))
    assert many.variance == 91
    assert known(along=7e3).variance == 7e3


def test_step_sizes_with_a_friction_and_with_a_thermostat():
    noisy = known(curvature=1.0, noise=(1e4,))
    h, friction = chosen(noisy, 20.0, "BAOA", 0)
    assert friction == 20
    assert_allclose(inflation_by_noise(float(h), 20.0, 1e4, 1.0, "BAOA", 0), 0.05)
    # What a thermostat adds to the friction, `h V / 2`, is a tenth in units of the step size.
    h, _ = chosen(noisy, None, "BADODAB", 0)
    assert_allclose(h * (h * 1e4 / 2), 0.1)
    # Without noise it is the curvature that limits it: `h sqrt(L)` is 0.3, `f / sqrt(L)` 0.2.
    h, friction = chosen(known(noise=(1e-9,)), None, "BAOA", 0)
    assert_allclose(np.asarray([h, friction]), [0.3 / 20, 0.2 * 20])


def test_surrogates_of_many_latents_have_a_diagonal(key, monkeypatch):
    """Squares of the gradients of rows at the shard's mode, and the gradient that is there."""
    monkeypatch.setattr(_surrogate, "LARGEST", 1)
    y = np.random.default_rng(1).normal(size=(9, 3)) + np.arange(9)[:, None]
    target = GaussianMean(jnp.asarray(y), prior_sd=2.0)
    space = Space(target, lambda x: x)
    found = fit_surrogates(space, jnp.zeros(3), (4, 5), "laplace", key=key)
    for shard, rows in enumerate((y[:4], y[4:])):
        mode = rows.sum(0) / (len(rows) + 0.25)
        precision = ((rows - mode) ** 2).sum(0)
        assert_allclose(found.precision[shard], precision, rtol=1e-4)
        slope = (rows - mode).sum(0)
        assert_allclose(found.linear[shard], slope + precision * mode, rtol=1e-4)
