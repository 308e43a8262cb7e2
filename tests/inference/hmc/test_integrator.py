"""Velocity Verlet: its order, its symmetry, and that it keeps volume."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpy.testing import assert_allclose

from whence.inference.hmc._integrator import End, PhasePoint, leapfrog
from whence.inference.hmc._metric import DenseMetric, DiagonalMetric


def _log_density(x):
    return -jnp.sum(jnp.cosh(x)) + 0.3 * x[0] * x[1]


VALUE_AND_GRAD = jax.value_and_grad(_log_density)
METRIC = DenseMetric(jnp.asarray([[1.0, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.2, 0.1, 1.3]]))


def _point(position, momentum, metric=METRIC):
    log_density, gradient = VALUE_AND_GRAD(position)
    return PhasePoint(position, momentum, log_density, gradient, metric.adjoint(gradient))


def _run(point, step_size, num_steps, metric=METRIC):
    for _ in range(num_steps):
        point = leapfrog(VALUE_AND_GRAD, metric, point, jnp.asarray(step_size))
    return point


def test_energy_error_is_of_second_order():
    point = _point(jnp.asarray([0.3, -0.5, 0.8]), jnp.asarray([0.7, 0.2, -1.0]))
    errors = [
        abs(float(_run(point, 1.0 / n, n).energy() - point.energy())) for n in (20, 40, 80)
    ]
    # Halving the step divides the error by 4, up to terms of fourth order.
    assert_allclose(np.divide(errors[:-1], errors[1:]), 4.0, rtol=0.02)


def test_trajectory_against_a_closed_form():
    """A normal seen through its own covariance turns like a clock."""
    factor = METRIC.factor
    precision = jnp.linalg.inv(factor @ factor.T)
    value_and_grad = jax.value_and_grad(lambda x: -0.5 * x @ precision @ x)
    start, momentum = jnp.asarray([1.0, -2.0, 0.5]), jnp.asarray([0.3, 0.1, -0.7])
    log_density, gradient = value_and_grad(start)
    point = PhasePoint(start, momentum, log_density, gradient, METRIC.adjoint(gradient))
    for _ in range(2000):
        point = leapfrog(value_and_grad, METRIC, point, jnp.asarray(1e-3))
    whitened = jnp.linalg.solve(factor, start)
    exact = factor @ (whitened * jnp.cos(2.0) + momentum * jnp.sin(2.0))
    assert_allclose(point.position, exact, atol=1e-6)


def test_reversible():
    point = _point(jnp.asarray([0.3, -0.5, 0.8]), jnp.asarray([0.7, 0.2, -1.0]))
    back = _run(_run(point, 0.2, 15), -0.2, 15)
    assert_allclose(back.position, point.position, atol=1e-13)
    assert_allclose(back.momentum, point.momentum, atol=1e-13)
    assert_allclose(back.log_density, point.log_density, atol=1e-13)


def test_keeps_volume():
    def move(state):
        point = _run(_point(state[:3], state[3:]), 0.4, 3)
        return jnp.concatenate([point.position, point.momentum])

    jacobian = jax.jacobian(move)(jnp.asarray([0.3, -0.5, 0.8, 0.7, 0.2, -1.0]))
    assert_allclose(jnp.linalg.det(jacobian), 1.0, rtol=1e-12)


def test_step_of_size_zero_evaluates():
    position = jr.normal(jr.key(0), (3,))
    end = End(position, 2 * position, jnp.zeros(3))
    point = leapfrog(VALUE_AND_GRAD, DiagonalMetric(jnp.ones(3)), end, jnp.asarray(0.0))
    log_density, gradient = VALUE_AND_GRAD(position)
    assert_allclose(point.position, position)
    assert_allclose(point.momentum, 2 * position)
    assert_allclose(point.log_density, log_density)
    assert_allclose(point.gradient, gradient)
