"""Warm-up: what follows from a window, without a model."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.inference.hmc._adapt import (
    aim,
    is_descending,
    last_window_end,
    learn,
    pauses,
    start_adaptation,
)
from whence.inference.hmc._estimate import DiagonalEstimator
from whence.inference.hmc._transition import FAILED, SAMPLING, SCALING, Chain

WARMUP, SCALES = 1000, np.asarray([2.0, 0.5])
FISHER = DiagonalEstimator(many=math.inf)


def _chain(phase=SAMPLING):
    zero = jnp.zeros(2)
    return Chain(zero, jnp.zeros(()), zero, jnp.asarray(0.5), jnp.asarray(phase, jnp.int32))


def _after(draws, log_density, *, divergences=0, rate=0.8, adaptation=None):
    """Return what warm-up remembers after a window of draws from a normal of `SCALES`."""
    adaptation = start_adaptation(FISHER, jnp.zeros(2)) if adaptation is None else adaptation

    def body(window, step):
        number, x, value = step
        window = window.update(
            x,
            -x / SCALES**2,
            value,
            is_divergent=number < divergences,
            acceptance_rate=jnp.asarray(rate),
        )
        return window, None

    steps = jnp.arange(len(draws)), draws, log_density
    window, _ = jax.lax.scan(body, jax.tree.map(jnp.asarray, adaptation.window), steps)
    return eqx.tree_at(lambda a: a.window, adaptation, window)


def _draws(count, key):
    x = SCALES[None] * jr.normal(key, (count, 2))
    return x, -0.5 * jnp.sum((x / SCALES[None]) ** 2, axis=1)


@pytest.mark.parametrize("warmup", [*range(0, 400, 7), 1000, 5000])
def test_pauses(warmup):
    found = np.asarray(pauses(warmup))
    assert np.all(np.diff(found) > 0)
    assert np.all(found > 0)
    assert warmup == 0 or found[-1] == warmup
    assert len(found) < 30
    assert not warmup >= 100 or last_window_end(warmup) in found


def test_windows_double_and_the_last_one_takes_the_rest(key):
    adaptation, chain, lengths = start_adaptation(FISHER, jnp.zeros(2)), _chain(), []
    for begin, end in zip((0, *pauses(WARMUP)), pauses(WARMUP)):
        adaptation = _after(*_draws(end - begin, jr.fold_in(key, end)), adaptation=adaptation)
        before = int(adaptation.window.count)
        adaptation, _ = learn(FISHER, adaptation, chain, end, WARMUP)
        if int(adaptation.window.count) == 0:
            lengths.append(before)
    assert lengths == [10, 20, 50, 80, 160, 580]  # and 100 for the step size


def test_nothing_happens_before_the_end_of_a_window(key):
    adaptation, chain = _after(*_draws(9, key)), _chain()
    same, chain_too = learn(FISHER, adaptation, chain, 10, WARMUP)
    assert same is adaptation
    assert chain_too is chain


def test_a_window_makes_a_metric_and_a_search_for_its_step_size(key):
    adaptation, chain = learn(FISHER, _after(*_draws(10, key)), _chain(), 10, WARMUP)
    assert_allclose(adaptation.metric.scale, SCALES)
    assert chain.phase == SCALING
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(adaptation.window))


def test_a_window_on_the_way_is_not_used(key):
    draws, _ = _draws(10, key)
    climb = jnp.linspace(-1_200.0, 0, 10)
    adaptation, chain = learn(FISHER, _after(draws, climb), _chain(), 10, WARMUP)
    assert_allclose(adaptation.metric.scale, 1)
    assert adaptation.length == 10
    assert chain.phase == SCALING
    # In the second half of warm-up it has to do.
    late, _ = learn(FISHER, _after(draws, climb), _chain(), 640, WARMUP)
    assert_allclose(late.metric.scale, SCALES)


def test_descent_is_told_from_fluctuation(key):
    """Of a normal in 2 dimensions, in 10 draws, and at log densities near overflow."""
    for number in range(50):
        window = _after(*_draws(10, jr.fold_in(key, number))).window
        assert not is_descending(window)
    draws, _ = _draws(10, key)
    # What counts is the rise over the whole window, not that from draw to draw. The limit is
    # 10 (dim + 10) nats, as the docs say.
    for rise, want in ((60.0, False), (240.0, True)):
        climb = jnp.linspace(-rise, 0, 10)
        assert is_descending(_after(draws, climb).window) == want
    huge = -1e60 * jnp.exp(-jnp.arange(10.0))
    assert is_descending(_after(draws, huge).window)
    assert is_descending(_after(draws, huge * 1e200).window)


def test_a_frozen_chain_starts_anew(key):
    used, _ = learn(FISHER, _after(*_draws(10, key)), _chain(), 10, WARMUP)
    x = jnp.ones((20, 2))
    frozen = _after(x, jnp.zeros(20), rate=0.01, adaptation=used)
    adaptation, chain = learn(FISHER, frozen, _chain(), 30, WARMUP)
    assert_allclose(adaptation.metric.scale, 1)
    assert adaptation.length == 10
    assert chain.phase == SCALING


def test_a_metric_that_is_not_finite_is_not_used():
    x = jnp.ones((10, 2))
    adaptation, _ = learn(FISHER, _after(x, jnp.zeros(10)), _chain(), 10, WARMUP)
    assert_allclose(adaptation.metric.scale, 1)


@pytest.mark.parametrize(
    ("count", "divergences", "caution"),
    [(39, 39, 1.0), (40, 0, 1.0), (100, 1, 2.0), (100, 2, 3.0), (100, 50, 5.0)],
)
def test_caution_is_learned_from_divergences(count, divergences, caution, key):
    window = _after(*_draws(count, key), divergences=divergences)
    adaptation, _ = learn(FISHER, window, _chain(), 100, WARMUP)
    assert_allclose(adaptation.caution, caution)
    assert_allclose(aim(0.8, adaptation.caution), 1 - 0.2 / caution)
    calm = _after(*_draws(100, key), adaptation=adaptation)
    adaptation, _ = learn(FISHER, calm, _chain(), 320, WARMUP)
    assert_allclose(adaptation.caution, max(0.7 * caution, 1))


def test_the_last_step_size_is_the_smaller_of_two_averages(key):
    adaptation = start_adaptation(FISHER, jnp.zeros(2))
    at = lambda a: (a.averaging.log_mean, a.last_log_step)
    for now, last, want in ((0.1, 0.2, 0.1), (0.3, 0.2, 0.2), (0.3, np.inf, 0.3)):
        logs = jnp.log(now), jnp.log(last)
        changed = eqx.tree_at(at, adaptation, logs)
        _, chain = learn(FISHER, changed, _chain(), WARMUP, WARMUP)
        assert_allclose(chain.step_size, want)
        assert chain.phase == SAMPLING


def test_a_chain_without_a_start_is_left_alone(key):
    adaptation, chain = _after(*_draws(10, key)), _chain(FAILED)
    same, chain_too = learn(FISHER, adaptation, chain, 10, WARMUP)
    assert same is adaptation
    assert chain_too is chain
