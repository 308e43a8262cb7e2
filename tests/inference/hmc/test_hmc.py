"""HMC with given lengths: conformance, its stationary distribution, its lengths."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

import whence as wh
from whence.inference.hmc import HMC
from whence.inference.hmc._transition import SAMPLING
from whence.running._loop import run
from whence.testing import Gaussian, LogGamma, check_truth


@pytest.mark.parametrize("length", [{}, {"num_steps": 8}, {"trajectory_length": 2.0}])
def test_moments(length, key):
    target = Gaussian(4, condition_number=100.0, correlated=True)
    check_truth(wh.infer(target, HMC(**length), key=key), target, min_ess=400.0)


def test_skewed(key):
    check_truth(wh.infer(LogGamma(), HMC(), key=key), LogGamma(), min_ess=400.0)


@pytest.mark.parametrize("step_size", [0.3, 1.2])
def test_keeps_a_skewed_target(step_size, key):
    """Exact draws stay exact draws. Kolmogorov-Smirnov, false alarms: 1e-5 each."""
    key_draws, key_run = jr.split(key)
    target = LogGamma((2.0,))
    engine = HMC(warmup=0, step_size=step_size, num_steps=4)
    draws = jnp.log(jr.gamma(key_draws, 2.0, (20_000, 1)))

    def start(x):
        state = engine.init(target, key=key)
        log_density, gradient = jax.value_and_grad(target.log_density)(x)
        return eqx.tree_at(
            lambda s: (s.chain.position, s.chain.log_density, s.chain.gradient, s.chain.phase),
            state,
            (x, log_density, gradient, jnp.asarray(SAMPLING, jnp.int32)),
        )

    @jax.jit
    def advance(state):
        def one(state, number):
            keys = jr.split(jr.fold_in(key_run, number), len(draws))
            step = lambda s, k: engine.step(target, s, jnp.int32(0), key=k)
            new, info = jax.vmap(step)(state, keys)
            is_moved = new.chain.position[:, 0] != state.chain.position[:, 0]
            return new, (info.stats["acceptance_rate"], is_moved)

        return jax.lax.scan(one, state, jnp.arange(10))

    state, (rates, moved) = advance(jax.vmap(start)(draws))
    rates, moved = np.asarray(rates), np.asarray(moved)
    # Each trajectory is accepted with the probability that is reported of it.
    assert abs(np.sum(moved - rates)) < 4.5 * np.sqrt(np.sum(rates * (1 - rates)))
    gamma = np.exp(np.asarray(state.chain.position[:, 0]))
    assert stats.kstest(gamma, stats.gamma(2.0).cdf).pvalue > 1e-5
    assert np.mean(rates) < 0.999
    assert abs(np.corrcoef(gamma, np.exp(np.asarray(draws[:, 0])))[0, 1]) < 0.3


def test_lengths(key):
    outcome = run(Gaussian(3), HMC(chains=1, num_steps=8, warmup=100, draws=300), key=key)
    assert set(outcome.records[0].stats["n_steps"][1:]) == {5, 6, 7, 8}
    engine = HMC(chains=1, trajectory_length=3.0, jitter=0.0, warmup=100, draws=50)
    outcome = run(Gaussian(3), engine, key=key)
    record = outcome.records[0].stats
    wanted = np.ceil(3.0 / record["step_size"][100:])
    assert np.all(record["n_steps"][100:] == wanted)


def test_divergences_are_reported(key):
    engine = HMC(chains=1, warmup=0, draws=20, step_size=10.0, num_steps=50)
    outcome = run(Gaussian(3), engine, key=key)
    record = outcome.records[0]
    assert np.all(record.stats["diverging"])
    assert np.all(record.stats["n_steps"] < 50)
    assert np.all(record.position == record.position[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 4, "trajectory_length": 1.0}, "not both; got 1.0 and 4"),
        ({"num_steps": 0}, "`num_steps` must be at least 1 and at most 1000, or None; got 0"),
        ({"trajectory_length": -1.0}, "`trajectory_length` must be positive and finite"),
        ({"jitter": 1.0}, "`jitter` must be at least 0 and below 1; got 1.0"),
        ({"draws": 0}, "`draws` must be at least 1; got 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        HMC(**arguments)
