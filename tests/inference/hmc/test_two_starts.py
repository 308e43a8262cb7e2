"""Two starts a chain: which is gone on from, and that nothing else changes."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import whence as wh
from whence.inference.hmc._adapt import last_window_end, pauses
from whence.inference.hmc._transition import SAMPLING, Chain
from whence.inference.hmc._two_starts import is_higher, own_index, pauses_of_two, steps_each

WARMUP, EACH, CHAINS = 200, 20, 40


def _wells(drop):
    """Return a target with modes at -6 and 6, the left one lower by `drop` nats.

    Starts are uniform on (-2, 2); none crosses from one mode to the other.
    """

    def log_density(draw):
        x = draw["x"]
        return -0.5 * (jnp.abs(x) - 6.0) ** 2 * 4.0 - drop * jnp.where(x < 0, 1.0, 0.0)

    return wh.from_log_density(log_density, {"x": jnp.zeros(())})


def _run(engine, key, drop=40.0, **how):
    return wh.infer(_wells(drop), engine, key=key, progress=False, throw=False, **how)


def _signs(posterior):
    """Return on which side each chain is at the end of either start, and at last."""
    warm = np.sign(np.asarray(posterior.sample.warmup_positions["x"]).reshape(CHAINS, WARMUP))
    last = np.sign(np.asarray(posterior.sample.positions["x"]).reshape(CHAINS, -1))
    assert (last == last[:, :1]).all()
    return warm[:, EACH - 1], warm[:, 2 * EACH - 1], last[:, 0]


@pytest.mark.parametrize("engine", [wh.NUTS, wh.HMC])
@pytest.mark.parametrize("drop", [40.0, 0.0])
def test_a_start_is_given_up_only_for_one_that_leads_far_higher(engine, drop, key):
    settings = {"warmup": WARMUP, "draws": 20, "chains": CHAINS, "keep_warmup": True}
    first, second, last = _signs(_run(engine(**settings), key, drop))
    both = {(a, b) for a, b in zip(first, second)}
    assert len(both) == 4  # each pair of modes was met
    wanted = np.where((first < 0) & (second > 0), second, first) if drop else first
    np.testing.assert_array_equal(last, wanted)


def test_nobody_leaves_the_start_that_was_asked_for(key):
    settings = {"warmup": WARMUP, "draws": 20, "chains": CHAINS, "keep_warmup": True}
    for side in _signs(_run(wh.NUTS(**settings), key, start={"x": -5.0})):
        assert (side < 0).all()


@pytest.mark.parametrize("told", [False, True])
def test_the_start_is_changed_unless_it_was_asked_for(told, key):
    engine = wh.NUTS(warmup=WARMUP).engine
    state = engine.init(_wells(40.0), key=key)
    where = lambda s: (s.chain.position, s.chain.phase, s.is_told)
    now = jnp.full(1, 7.0), jnp.asarray(SAMPLING, jnp.int32), jnp.asarray(told)
    state = engine.pause(eqx.tree_at(where, state, now), EACH)
    assert state.chain.position == (7.0 if told else 0.0)
    assert state.other.chain.position == (0.0 if told else 7.0)


def test_draws_do_not_depend_on_chunks(key):
    engine = wh.NUTS(warmup=WARMUP, draws=10, chains=3)
    draws = [
        np.asarray(_run(engine, key, **how).sample.positions["x"])
        for how in ({}, {"chunk_steps": 7}, {"vectorised": True})
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_allclose(draws[0], draws[2], rtol=1e-4)


def test_higher_means_more_than_draws_of_one_mode_differ():
    def chain(value, dim):
        x = jnp.zeros(dim)
        return Chain(x, jnp.asarray(value), x, jnp.ones(()), jnp.asarray(SAMPLING))

    for dim in (1, 100):
        margin = 5 * (1 + dim**0.5)
        assert is_higher(chain(1.01 * margin, dim), chain(0.0, dim))
        assert not is_higher(chain(0.99 * margin, dim), chain(0.0, dim))
        assert not is_higher(chain(np.nan, dim), chain(0.0, dim))
    # Draws of a normal law: log densities of two differ by 2 sqrt(dim / 2) standard deviations.
    logs = -0.5 * np.random.default_rng(0).chisquare(100, (2, 100_000))
    assert np.mean(logs[1] - logs[0] > 5 * 11) < 1e-4


@pytest.mark.parametrize("warmup", [0, 50, 199, 200, 333, 1000, 5000])
def test_pauses_are_counted_from_either_start(warmup):
    found, alone, each = pauses_of_two(warmup), pauses(warmup), steps_each(warmup)
    assert each == (warmup // 10 if warmup >= 200 else 0)
    if not each:
        assert found == alone
        return
    stop = last_window_end(warmup)
    assert list(found) == sorted(set(found))
    assert found[-1] == warmup
    assert {each, 2 * each, stop} <= set(found)
    assert {at + each for at in alone if at + each < stop} <= set(found)
    assert {at for at in alone if at < each} <= set(found)


def test_steps_are_counted_from_the_start_that_is_followed():
    at = jnp.asarray([0, 19, 20, 39, 40, 199])
    np.testing.assert_array_equal(
        own_index(at, 200, jnp.asarray(False)), [0, 19, 0, 19, 20, 179]
    )
    np.testing.assert_array_equal(own_index(at, 200, jnp.asarray(True)), at)
    np.testing.assert_array_equal(own_index(at, 100, jnp.asarray(False)), at)
