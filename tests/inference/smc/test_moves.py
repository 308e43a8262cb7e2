"""Moves leave a skewed, correlated density invariant, and tune themselves."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.inference.smc._kernels import KERNELS, Factor, Particles
from whence.inference.smc._moves import Moves, covariance_factor, move_particles
from whence.inference.smc._weights import equal_log_weights, normalise

NUM = 20_000


def _draw(key):
    """Log-Gamma coordinates (skewness -1.1 and -0.5), sheared to be correlated."""
    gammas = jr.gamma(key, jnp.asarray([1.0, 4.0]), (NUM, 2))
    u = jnp.log(gammas)
    return jnp.stack([u[:, 0], u[:, 1] + 2.0 * u[:, 0]], axis=1)


def _terms(x):
    u = jnp.stack([x[0], x[1] - 2.0 * x[0]])
    return jnp.sum(jnp.asarray([1.0, 4.0]) * u - jnp.exp(u)), jnp.zeros(())


@functools.cache
def _program(kernel, moves, dense):
    @jax.jit
    def run(x, log_scale, key):
        zeros = jnp.zeros(x.shape[0])
        return move_particles(
            Moves(KERNELS[kernel], "dense" if dense else "diagonal", moves, 100),
            _terms,
            Particles(x, zeros, zeros),
            equal_log_weights(x.shape[0]),
            jnp.ones(()),
            log_scale,
            key=key,
        )

    return run


def _move(kernel, x, key, log_scale=0.0, moves=6, dense=True):
    return _program(kernel, moves, dense)(x, jnp.asarray(log_scale), key)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dense", [True, False])
def test_moves_leave_a_skewed_density_invariant(kernel, dense, key):
    key_draw, key_move = jr.split(key)
    x = _draw(key_draw)
    moved, _, stats = _move(kernel, x, key_move, dense=dense)
    assert stats.num_moves == 6
    assert 0.15 < stats.acceptance_rate < 0.95
    before, after = np.asarray(x), np.asarray(moved.x)
    assert np.mean(np.any(before != after, axis=1)) > 0.5
    for power in (1, 2, 3):
        a, b = before**power, after**power
        # Both samples are noisy and correlated: the spread of the difference counts.
        error = (b - a).std(0) / NUM**0.5
        assert np.all(np.abs((b - a).mean(0)) < 4.5 * error)


@pytest.mark.parametrize("kernel", KERNELS)
def test_adaptive_moves_reach_independence_and_stop(kernel, key):
    key_draw, key_move = jr.split(key)
    x = _draw(key_draw)
    moved, _, stats = _move(kernel, x, key_move, log_scale=5.0, moves=None)
    assert 2 <= int(stats.num_moves) < 60
    correlation = [
        np.corrcoef(np.asarray(x)[:, j], np.asarray(moved.x)[:, j])[0, 1] for j in (0, 1)
    ]
    assert max(correlation) < 0.3


@pytest.mark.parametrize("kernel", KERNELS)
def test_scale_is_tuned_to_the_acceptance_rate(kernel, key):
    x = _draw(key)
    log_scale = 3.0
    for i in range(8):
        _, log_scale, stats = _move(kernel, x, jr.fold_in(key, i), log_scale=log_scale)
    goal = KERNELS[kernel].target_acceptance(2)
    assert abs(float(stats.acceptance_rate) - goal) < 0.12


def test_stored_terms_belong_to_the_positions(key):
    moved, _, _ = _move("hmc", _draw(key), key)
    want = jax.vmap(_terms)(moved.x)[0]
    assert_allclose(moved.log_base, want, rtol=1e-12)


@pytest.mark.parametrize("dense", [True, False])
def test_covariance_factor_is_of_the_weighted_particles(dense, key):
    x = jr.normal(key, (500, 3)) @ jnp.asarray([[2.0, 0, 0], [1, 0.1, 0], [0, 3, 1]])
    log_weights, _ = normalise(jr.normal(jr.fold_in(key, 1), (500,)))
    x = x.at[0].set(jnp.nan)
    log_weights, _ = normalise(log_weights.at[0].set(-jnp.inf))
    root = np.asarray(covariance_factor(x, log_weights, dense).root)
    want = np.cov(np.asarray(x)[1:].T, aweights=np.exp(np.asarray(log_weights))[1:])
    got = root @ root.T if dense else np.diag(root**2)
    assert_allclose(got, want if dense else np.diag(np.diag(want)), rtol=1e-8, atol=1e-10)


def test_covariance_factor_of_identical_particles_is_finite_and_positive():
    x = jnp.ones((50, 3)).at[:, 1].set(jnp.arange(50.0))
    root = np.asarray(covariance_factor(x, equal_log_weights(50), True).root)
    assert np.isfinite(root).all()
    assert np.all(np.diag(root) > 0)


def test_factor_pull_is_the_transpose_of_colour(key):
    root = jnp.tril(jr.normal(key, (3, 3)))
    a, b = jr.normal(key, (2, 5, 3))
    for factor in (Factor(root), Factor(jnp.diag(root))):
        assert_allclose(jnp.sum(factor.colour(a) * b), jnp.sum(a * factor.pull(b)))
