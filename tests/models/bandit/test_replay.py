"""Replayed logs against what the policies earn when they are really played."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from whence.models.bandit import (
    UCB1,
    BernoulliTS,
    BetaBernoulli,
    LinearGaussian,
    LinearTS,
    LinUCB,
    LoggedData,
    NormalGamma,
    VarTS,
    inverse_propensity,
    replay,
)

MEANS = np.array([0.0, 0.5, 1.0])
TRUTH = np.array([1.0, -0.5])


def _log(rows, seed, chances=None, arms=3):
    """Return a log of arms with features, whose rewards are linear in them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, arms, 2))
    features[..., 0] += MEANS[:arms]
    pulled = rng.choice(arms, rows, p=chances)
    mean = features[np.arange(rows), pulled] @ TRUTH
    propensities = None if chances is None else np.asarray(chances)[pulled]
    return LoggedData(
        pulled,
        mean + rng.normal(size=rows),
        arms=arms,
        features=features,
        propensities=propensities,
    )


PRIOR = LinearGaussian(np.zeros(2), np.eye(2), 2.0, 2.0)
LINEAR = LinearTS(PRIOR)
ARMS = VarTS(NormalGamma(0.0, 1.0, 3.0, 3.0, arms=3))


def _on_policy(policy, rounds, instances, key):
    """Return mean rewards over the first rounds when the policy is really played."""

    def step(state, key):
        key_context, key_noise, key_act = jr.split(key, 3)
        x = jr.normal(key_context, (3, 2)).at[:, 0].add(MEANS)
        seen = (x,) if policy is LINEAR else ()
        arm = policy.act(state, *seen, key=key_act)
        reward = x[arm] @ TRUTH + jr.normal(key_noise)
        return policy.update(state, x[arm] if seen else arm, reward), reward

    def play(key):
        return jnp.mean(jax.lax.scan(step, policy.init(), jr.split(key, rounds))[1])

    return np.asarray(jax.jit(jax.vmap(play))(jr.split(key, instances)))


@pytest.mark.parametrize(
    "policy", [ARMS, pytest.param(LINEAR, marks=pytest.mark.slow)], ids=["arms", "features"]
)
def test_replay_of_a_learner_is_unbiased(policy):
    """The first 30 accepted rewards, over 150 logs, against 2,000 trials of 30 rounds."""
    means = []
    for seed in range(150):
        result = replay(policy, _log(200, seed), key=jr.key(seed))
        assert result.used == len(result.rewards) >= 30
        means.append(result.rewards[:30].mean())
    truth = _on_policy(policy, 30, 2_000, jr.key(1))
    error = np.hypot(np.std(means) / np.sqrt(150), truth.std() / np.sqrt(2_000))
    assert abs(np.mean(means) - truth.mean()) < 4 * error
    # It learns: better than a policy that pulls arms blindly would be.
    assert np.mean(means) > 0.5 + 4 * error


def _value_of(policy, state, draws=20_000):
    """Return the true mean reward of a policy that is held at a state, and its error."""
    rng = np.random.default_rng(5)
    if policy is ARMS:  # which arm is best is then a matter of its draws alone
        arms = jax.vmap(lambda key: policy.act(state, key=key))(jr.split(jr.key(6), draws))
        rewards = MEANS[np.asarray(arms)] * TRUTH[0]
        return rewards.mean(), rewards.std() / np.sqrt(draws)
    x = rng.normal(size=(draws, 3, 2))
    x[..., 0] += MEANS
    arms = jax.vmap(lambda z, key: policy.act(state, z, key=key))(x, jr.split(jr.key(6), draws))
    rewards = x[np.arange(draws), np.asarray(arms)] @ TRUTH
    return rewards.mean(), rewards.std() / np.sqrt(draws)


def _learned(policy):
    """Return the state of a policy that has learned from a log by hand."""
    log = _log(100, 1_000)
    if policy is ARMS:
        return VarTS(ARMS.prior.update_batch(log.pulled, log.rewards)).init()
    x = log.features[np.arange(100), log.pulled]
    return LinearTS(PRIOR.update_batch(x, log.rewards)).init()


@pytest.mark.parametrize(
    "policy", [LINEAR, pytest.param(ARMS, marks=pytest.mark.slow)], ids=["features", "arms"]
)
@pytest.mark.parametrize("normalise", [False, True])
def test_weighting_is_unbiased(policy, normalise):
    state = _learned(policy)
    log = _log(5_000, 7, chances=[0.6, 0.3, 0.1])
    result = inverse_propensity(
        policy, log, key=jr.key(3), state=state, normalise=normalise, draws=4
    )
    value, error = _value_of(policy, state)
    assert abs(result.value - value) < 4 * np.hypot(result.standard_error, error)
    assert 0 < result.standard_error < 0.1
    assert 100 < result.used < 5_000
    assert result.remark == ""


@pytest.mark.slow
def test_without_learning_both_agree_with_the_truth():
    state = _learned(LINEAR)
    log = _log(20_000, 8)
    result = replay(LINEAR, log, key=jr.key(4), state=state, learn=False)
    value, error = _value_of(LINEAR, state)
    assert abs(result.value - value) < 4 * np.hypot(result.standard_error, error)
    assert abs(result.used / 20_000 - 1 / 3) < 5 * np.sqrt(2 / 9 / 20_000)
    jax.tree.map(assert_array_equal, result.state, state)


def test_by_hand():
    """UCB1 pulls arm 0 first; every row below accepts or not as worked out."""
    log = LoggedData([1, 0, 0, 1, 0], [9.0, 1.0, 9.0, 0.0, 3.0], arms=2)
    result = replay(UCB1(2), log, key=jr.key(0))
    # Rows 1 (arm 0), 3 (arm 1); then arm 0 has the higher index.
    assert_array_equal(result.rewards, [1.0, 0.0, 3.0])
    assert_allclose(result.value, 4 / 3)
    assert_allclose(result.standard_error, np.std([1, 0, 3], ddof=1) / np.sqrt(3))
    assert_array_equal(result.state.count, [2, 1])
    assert "Only 3 of 5 rows were accepted." in result.remark
    assert "Only 3 of 5" in str(result)
    weighted = LoggedData([0, 1, 0], [1.0, 9.0, 2.0], arms=2, propensities=[0.5, 0.5, 0.2])
    result = inverse_propensity(UCB1(2), weighted, key=jr.key(0))  # arm 0 always
    assert_allclose(result.value, (1 / 0.5 + 2 / 0.2) / 3)
    assert_allclose(result.used, 7**2 / (2**2 + 5**2))
    assert "The weights are worth only 1.7 rows." in result.remark
    result = inverse_propensity(UCB1(2), weighted, key=jr.key(0), normalise=True)
    assert_allclose(result.value, (1 / 0.5 + 2 / 0.2) / 7)


def test_nothing_accepted():
    log = LoggedData([1, 1], [1.0, 2.0], arms=2)
    result = replay(UCB1(2), log, key=jr.key(0))
    assert np.isnan(result.value)
    assert np.isnan(result.standard_error)
    assert result.used == 0
    assert "Only 0 of 2 rows were accepted." in result.remark
    assert "100% of the choices are arms [0], which the log never has." in result.remark
    log = LoggedData([1, 1], [1.0, 2.0], arms=2, propensities=[0.5, 0.5])
    result = inverse_propensity(UCB1(2), log, key=jr.key(0), normalise=True)
    assert np.isnan(result.value)
    assert result.used == 0


def test_a_log_that_does_not_look_uniform():
    pulled = np.repeat([0, 1], [300, 100])
    log = LoggedData(pulled, np.ones(400), arms=2)
    assert "do not look uniform: [300, 100]" in replay(UCB1(2), log, key=jr.key(0)).remark


def _bad(pulled=(0, 1), rewards=(0.0, 1.0), arms=2, **kwargs):
    return LoggedData(list(pulled), list(rewards), arms=arms, **kwargs)


KEY = {"key": jr.key(0)}
BAD = {
    "`rewards` must be a vector with at least one row; got (0,)": lambda: _bad((), ()),
    "`pulled` must have one entry per reward, (2,); got (1,)": lambda: _bad((0,)),
    "`arm` must be from 0 to 1, as there are 2 arms; got 2": lambda: _bad((0, 2)),
    "`arm` must be an integer": lambda: _bad((0.0, 1.0)),
    "`rewards` must be finite; got nan": lambda: _bad(rewards=(0.0, np.nan)),
    "above 0 and at most 1; got 0.0": lambda: _bad(propensities=[0.0, 1.0]),
    "above 0 and at most 1; got 1.5": lambda: _bad(propensities=[0.5, 1.5]),
    "above 0 and at most 1; got nan": lambda: _bad(propensities=[0.5, np.nan]),
    "`propensities` must have one entry per reward": lambda: _bad(propensities=[0.5]),
    "`features` must have shape (2, 2, feature); got (2, 3)": lambda: _bad(
        features=np.ones((2, 3))
    ),
    "`features` must be finite; got inf": lambda: _bad(features=np.full((2, 2, 1), np.inf)),
    "`arms` must be at least 1": lambda: _bad(arms=0),
    "propensities of 1 / 2 to be replayed; got 0.4": lambda: replay(
        UCB1(2), _bad(propensities=[0.5, 0.4]), **KEY
    ),
    "must have propensities; got none": lambda: inverse_propensity(UCB1(2), _bad(), **KEY),
    "for the 2 arms of the log; it is for 3": lambda: replay(UCB1(3), _bad(), **KEY),
    "must have features for a policy": lambda: replay(LinUCB(2), _bad(), **KEY),
    "for the 1 features of the log; it is for 2": lambda: replay(
        LinUCB(2), _bad(features=np.ones((2, 2, 1))), **KEY
    ),
    "`reward` must be 0 or 1; got 0.5": lambda: replay(
        BernoulliTS(BetaBernoulli(arms=2)), _bad(rewards=(0.5, 1.0)), **KEY
    ),
    "`draws` must be": lambda: inverse_propensity(UCB1(2), _bad(), draws=0, **KEY),
}


@pytest.mark.parametrize("rule", BAD)
def test_bad_input_is_refused(rule):
    with pytest.raises(ValueError) as error:
        BAD[rule]()
    assert rule in str(error.value)
