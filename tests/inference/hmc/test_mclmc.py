"""MCLMC: the integrator, invariance, moments, bias without a test, failures."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import whence as wh
from whence.core import AbstractTarget
from whence.inference.hmc._autocorrelation import forget, remember, slowest_time
from whence.inference.hmc._isokinetic import (
    INTEGRATORS,
    MinimalNorm,
    Particle,
    random_direction,
    stage,
    turn,
)
from whence.inference.hmc._metric import DiagonalMetric
from whence.testing import Gaussian, LogGamma, check_engine, check_truth


class Nowhere(AbstractTarget):
    """A target without a finite density."""

    scale: jax.Array

    def init(self, *, key):
        return jr.normal(key, (2,), self.scale.dtype)

    def log_density(self, position):
        return jnp.sum(position) * self.scale - jnp.inf

    def constrain(self, position):
        return {"x": position}


def _tangents(u):
    """An orthonormal basis of the tangent space of the sphere at `u`, as columns."""
    return jnp.linalg.svd(u[None, :])[2][1:].T


def _sphere_log_det(function, u):
    """Brute force: the log determinant of a map of the sphere into itself."""
    jacobian = jax.jacfwd(function)(u)
    return jnp.linalg.slogdet(_tangents(function(u)).T @ jacobian @ _tangents(u))[1]


@pytest.mark.parametrize("time", [0.01, 0.7, 3.0])
def test_turn_solves_its_equation_and_counts_its_determinant(time):
    force, time = jnp.asarray([1.0, -2.0, 0.5, 3.0]), jnp.asarray(time)
    start = random_direction(jr.key(0), force)
    new, energy = turn(start, force, time)

    def slope(u):
        return (force - u * jnp.dot(u, force)) / 3

    def euler(_, u):  # midpoint rule, 4,000 steps
        h = time / 4000
        return u + h * slope(u + 0.5 * h * slope(u))

    assert_allclose(new, jax.lax.fori_loop(0, 4000, euler, start), atol=1e-5)
    log_det = _sphere_log_det(lambda u: turn(u, force, time)[0], start)
    assert_allclose(energy, -log_det, rtol=1e-8, atol=1e-10)


def test_turn_does_not_overflow():
    start, force = jnp.asarray([1.0, 0.0, 0.0]), jnp.asarray([1e6, 1e6, 0.0])
    new, energy = turn(start, force, jnp.asarray(10.0))
    assert_allclose(new, force / jnp.linalg.norm(force), atol=1e-12)
    angle = 10.0 * np.sqrt(2) * 1e6 / 2
    assert_allclose(energy, 2 * (angle + np.log(0.5 * (1 + 0.5**0.5))), rtol=1e-12)


def _target():
    return LogGamma((1.0, 2.0, 5.0))


METRIC = DiagonalMetric(jnp.asarray([1.0, 0.8, 0.5]))


def _integrate(integrator, particle, step_size, steps):
    value_and_grad = jax.value_and_grad(_target().log_density)

    def body(carry, number):
        particle, change = stage(
            value_and_grad, METRIC, carry, jnp.asarray(step_size), number, integrator
        )
        return particle, change

    number = jnp.arange(steps * integrator.stages)
    particle, changes = jax.lax.scan(body, particle, number)
    return particle, changes.sum()


def _particle(position, direction):
    lp, gradient = jax.value_and_grad(_target().log_density)(position)
    return Particle(position, direction, lp, gradient)


def _start():
    position = jnp.asarray([0.3, -0.4, 1.2])
    return _particle(position, random_direction(jr.key(5), position))


@pytest.mark.parametrize("integrator", INTEGRATORS.values(), ids=INTEGRATORS)
def test_integrator_is_reversible(integrator):
    start = _start()
    end, error = _integrate(integrator, start, 0.6, 7)
    assert abs(error) > 1e-3
    flipped = eqx.tree_at(lambda p: p.direction, end, -end.direction)
    back, undone = _integrate(integrator, flipped, 0.6, 7)
    assert_allclose(back.position, start.position, atol=1e-10)
    assert_allclose(back.direction, -start.direction, atol=1e-10)
    assert_allclose(undone, -error, atol=1e-10)


@pytest.mark.parametrize("integrator", INTEGRATORS.values(), ids=INTEGRATORS)
def test_energy_error_is_target_ratio_times_jacobian(integrator):
    """Brute force: determinant of the whole trajectory on positions times sphere."""
    start = _start()

    def flow(point):
        end, _ = _integrate(integrator, _particle(point[:3], point[3:]), 0.6, 4)
        return jnp.concatenate([end.position, end.direction])

    def basis(direction):
        return jax.scipy.linalg.block_diag(jnp.eye(3), _tangents(direction))

    end, error = _integrate(integrator, start, 0.6, 4)
    jacobian = jax.jacfwd(flow)(jnp.concatenate([start.position, start.direction]))
    square = basis(end.direction).T @ jacobian @ basis(start.direction)
    log_det = jnp.linalg.slogdet(square)[1]
    assert_allclose(-error, end.log_density - start.log_density + log_det, atol=1e-10)


@pytest.mark.parametrize("integrator", INTEGRATORS.values(), ids=INTEGRATORS)
def test_energy_error_is_of_second_order(integrator):
    coarse = _integrate(integrator, _start(), 0.1, 10)[1]
    fine = _integrate(integrator, _start(), 0.05, 20)[1]
    assert 3.3 < coarse / fine < 4.8


def _frozen(engine, target, draws, step_size, length, key):
    """States whose particles are exact draws, as if warm-up had ended there."""

    def one(position, key):
        state = engine.init(target, key=key)
        padding = state.particle.position.size - position.size
        extra = jr.normal(key, (padding,), position.dtype)
        full = jnp.concatenate([position, extra])
        lp, gradient = jax.value_and_grad(target.log_density)(position)
        particle = Particle(
            full,
            random_direction(jr.fold_in(key, 2), full),
            lp - 0.5 * jnp.sum(extra**2),
            jnp.concatenate([gradient, -extra]),
        )
        return eqx.tree_at(
            lambda s: (s.particle, s.step_size.log_mean, s.log_length),
            state,
            (particle, jnp.log(step_size), jnp.log(length)),
        )

    return jax.vmap(one)(draws, jr.split(key, draws.shape[0]))


@eqx.filter_jit
def _run(engine, target, states, steps, key):
    """Frozen steps of many independent chains; final positions and acceptance rates."""

    def one(state, key):
        def body(state, index):
            state, info = engine.step(target, state, index, key=jr.fold_in(key, index))
            return state, (info.position, info.stats["acceptance_rate"])

        indices = engine.warmup + jnp.arange(steps, dtype=jnp.int32)
        _, (positions, rates) = jax.lax.scan(body, state, indices)
        return positions[-1], rates.mean()

    number = jax.tree.leaves(states)[0].shape[0]
    return jax.vmap(one)(states, jr.split(key, number))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2.0,), {}),
        ((1.0, 4.0), {"langevin": True, "integrator": "minimal_norm"}),
    ],
    ids=["line", "noisy"],
)
def test_frozen_kernel_keeps_a_skewed_target(shape, options, key):
    """Chains that start from exact draws stay exact draws, however coarse the steps."""
    key_draws, key_state, key_run = jr.split(key, 3)
    target, engine = LogGamma(shape), wh.MCLMC(warmup=20, draws=1, **options)
    draws = jnp.log(jr.gamma(key_draws, jnp.asarray(shape), (10_000, len(shape))))
    coarse = jnp.asarray(1.6)
    states = _frozen(engine, target, draws, coarse, 2 * coarse, key_state)
    end, rates = _run(engine, target, states, 12, key_run)
    assert 0.4 < rates.mean() < 0.95  # the test would be empty if all were accepted
    for i, a in enumerate(shape):
        gamma = np.exp(np.asarray(end[:, i]))
        assert stats.kstest(gamma, stats.gamma(a).cdf).pvalue > 1e-5
        assert abs(np.corrcoef(gamma, np.exp(np.asarray(draws[:, i])))[0, 1]) < 0.3


def test_bias_without_a_test_shrinks_with_the_step(key):
    """Variance of a standard normal from 10,000 chains that start exact; 20 steps on."""
    key_draws, key_run = jr.split(key)
    target, engine = Gaussian(3), wh.MCLMC(warmup=20, draws=1, adjusted=False)
    draws = target.mean[None] + jr.normal(key_draws, (10_000, 3))

    def bias(step_size):
        states = _frozen(
            engine, target, draws, jnp.asarray(step_size), jnp.asarray(4.0), key_draws
        )
        end, _ = _run(engine, target, states, 20, key_run)
        return np.mean((np.asarray(end) - np.asarray(target.mean)) ** 2) - 1

    error = np.sqrt(2 / 30_000)  # of a variance from as many normal draws
    coarse, fine = bias(2.5), bias(0.8)
    assert abs(coarse) > 10 * error
    assert abs(fine) < abs(coarse) / 4 + 5 * error


@pytest.mark.slow
def test_conformance(key):
    check_engine(wh.MCLMC(warmup=400, draws=400), key=key)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        (
            Gaussian(10, condition_number=100.0, correlated=True),
            {"metric": "diagonal", "integrator": MinimalNorm()},
        ),
        (Gaussian(5, condition_number=1e6, correlated=True), {"langevin": True}),
    ],
    ids=["diagonal", "dense"],
)
def test_moments(target, options, key):
    posterior = wh.infer(target, wh.MCLMC(warmup=600, draws=600, **options), key=key)
    check_truth(posterior, target, min_ess=400.0)
    assert not posterior.stats["diverging"].any()
    assert 0.85 < posterior.stats["acceptance_rate"].mean() < 0.96


def test_unadjusted_hits_its_energy_variance(key):
    target = Gaussian(10, condition_number=4.0)
    engine = wh.MCLMC(warmup=600, draws=400, adjusted=False, energy_variance=1e-3)
    posterior = wh.infer(target, engine, key=key)
    check_truth(posterior, target, bias=0.05, min_ess=400.0)
    assert 0.5e-3 < posterior.stats["energy_variance"].mean() < 2e-3
    record = posterior.record
    assert abs(record.inflation[-1] - 1) < 4.5 * record.inflation_error[-1] + 0.05
    assert posterior.diagnose()["spread"].severity == "ok"
    assert np.isfinite(posterior.stats["energy_error"]).all()


def test_no_start_is_an_error(key):
    with pytest.raises(wh.InferenceError, match="initial points"):
        wh.infer(Nowhere(jnp.ones(())), wh.MCLMC(chains=2, warmup=20, draws=5), key=key)


def test_slowest_time():
    """An AR(1) with correlation 0.8 remembers (1 + 0.8) / (1 - 0.8) = 9 draws."""
    noise = jr.normal(jr.key(3), (20_000, 2))

    def step(x, e):
        x = jnp.asarray([0.8, 0.3]) * x + e
        return x, x

    _, path = jax.lax.scan(step, jnp.zeros(2), noise)
    memory, _ = jax.lax.scan(lambda m, x: (remember(m, x), None), forget(path[0]), path[1:])
    # The estimate of the correlation has standard error 0.004 and is lowered by 0.007.
    assert_allclose(slowest_time(memory), 9, rtol=0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 0}, "`chains` must be at least 1; got 0"),
        ({"warmup": 10}, "`warmup` must be at least 20; got 10"),
        ({"target_accept": 0.0}, "`target_accept` must be above 0 and below 1; got 0.0"),
        ({"energy_variance": 0.0}, "`energy_variance` must be positive"),
        ({"metric": "full"}, "`metric` must be one of"),
        ({"integrator": "euler"}, "`integrator` must be one of"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        wh.MCLMC(**options)
