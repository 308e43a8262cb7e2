"""Moves leave a skewed, correlated density invariant, and tune themselves."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.inference.smc._kernels import KERNELS, Particles
from whence.inference.smc._metric import METRICS, Factor, covariance_factor
from whence.inference.smc._moves import Moves, move_chains, move_particles
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
        zeros, equal = jnp.zeros(x.shape[0]), equal_log_weights(x.shape[0])
        metric = METRICS["dense" if dense else "diagonal"]
        return move_particles(
            Moves(KERNELS[kernel], metric, moves, 100),
            _terms,
            Particles(x, zeros, zeros),
            equal,
            jnp.ones(()),
            metric.factor(x, equal),
            log_scale,
            key=key,
        )

    return run


def _move(kernel, x, key, log_scale=0.0, moves=6, dense=True):
    return _program(kernel, moves, dense)(x, jnp.asarray(log_scale), key)


SCALED = ["hmc", "rwm", "mala"]


@pytest.mark.parametrize(
    ("kernel", "dense"),
    [("hmc", False), ("rwm", False), *((kernel, True) for kernel in KERNELS)],
)
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


@pytest.mark.parametrize("kernel", SCALED)
def test_adaptive_moves_reach_independence_and_stop(kernel, key):
    key_draw, key_move = jr.split(key)
    x = _draw(key_draw)
    moved, _, stats = _move(kernel, x, key_move, log_scale=5.0, moves=None)
    assert 2 <= int(stats.num_moves) < 60
    correlation = [
        np.corrcoef(np.asarray(x)[:, j], np.asarray(moved.x)[:, j])[0, 1] for j in (0, 1)
    ]
    assert max(correlation) < 0.3


@pytest.mark.parametrize("kernel", SCALED)
def test_scale_is_tuned_to_the_acceptance_rate(kernel, key):
    x = _draw(key)
    log_scale = 3.0
    for i in range(8):
        _, log_scale, stats = _move(kernel, x, jr.fold_in(key, i), log_scale=log_scale)
    goal = KERNELS[kernel].target_acceptance(2)
    assert abs(float(stats.acceptance_rate) - goal) < 0.12


def test_growth_is_told_of_particles_that_moves_spread(key):
    key_draw, key_move = jr.split(key)
    x = _draw(key_draw)
    # These are where the density has its mass, and moves leave them there.
    assert _move("rwm", x, key_move)[2].growth < 0.1
    centre = x.mean(0)[None]
    near = centre + 0.5 * (x - centre)
    moved, _, stats = _move("rwm", near, key_move, moves=20)
    variance = lambda v: np.mean((np.asarray(v) - np.asarray(centre)) ** 2, axis=0)
    expected = np.mean(variance(moved.x) / variance(near)) - 1
    assert expected > 1
    assert_allclose(stats.growth, expected, rtol=1e-3)


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


def test_factor_pull_is_the_transpose_of_colour_and_whiten_its_inverse(key):
    root = jnp.tril(jr.normal(key, (3, 3)))
    a, b = jr.normal(key, (2, 5, 3))
    centre = jnp.arange(3.0)
    for factor in (Factor(root, centre), Factor(jnp.diag(root), centre)):
        assert_allclose(jnp.sum(factor.colour(a) * b), jnp.sum(a * factor.pull(b)))
        assert_allclose(factor.whiten(factor.colour(a) + centre[None]), a, rtol=1e-9)


@pytest.mark.parametrize("kernel", ["mala", "independent"])
def test_states_of_chains_have_the_density_too(kernel, key):
    """Waste-free: from 2,000 exact draws, all states of ten moves of each."""
    key_draw, key_move = jr.split(key)
    chains, length = 2_000, 10
    starts = _draw(key_draw)[:chains]
    x = jnp.repeat(starts, length, 0)
    metric = METRICS["dense"]
    found, _, stats = jax.jit(
        lambda x, key: move_chains(
            Moves(KERNELS[kernel], metric, None, 100),
            _terms,
            Particles(x, jnp.zeros(len(x)), jnp.zeros(len(x))),
            chains,
            jnp.ones(()),
            metric.factor(x, equal_log_weights(len(x))),
            jnp.zeros(()),
            key=key,
        )
    )(x, key_move)
    assert int(stats.num_moves) == length - 1
    rows = np.asarray(found.x).reshape(chains, length, 2)
    np.testing.assert_array_equal(rows[:, 0], starts)  # the first state is where it begins
    assert np.all(rows[:, -1] != rows[:, 0], axis=1).mean() > 0.9
    assert_allclose(found.log_base, jax.vmap(_terms)(found.x)[0], rtol=1e-12)
    for power in (1, 2):
        change = (rows[:, 1:] ** power).mean(1) - rows[:, 0] ** power
        assert np.all(np.abs(change.mean(0)) < 4.5 * change.std(0) / chains**0.5)
