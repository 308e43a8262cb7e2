"""States are taken by policies that choose by the same posterior, and by no others."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from whence.models import bandit

POLICIES = {
    "VarTS": bandit.VarTS(bandit.NormalGamma(0.0, 1.0, 2.0, 1.0, arms=3)),
    "GaussianTS": bandit.GaussianTS(1.0, arms=3),
    "BernoulliTS": bandit.BernoulliTS(bandit.BetaBernoulli(1.0, 1.0, arms=3)),
    "UCB1": bandit.UCB1(3),
    "LinearTS": bandit.LinearTS(bandit.LinearGaussian(np.zeros(3), np.eye(3), 3.0, 2.0)),
    "C2UCB": bandit.C2UCB(3, bandit.TopK(2), rho=1.0),
    "VAC2UCB": bandit.VAC2UCB(3, bandit.TopK(2), rho=1.0),
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_state_of_another_policy_is_refused(name, key):
    policy, features = POLICIES[name], np.eye(3)
    arm, reward = (1, 1.0) if isinstance(policy, bandit.AbstractPolicy) else (features[0], 1.0)
    if name.endswith("C2UCB"):
        arm, reward = features[:2], np.ones(2)
    given = () if isinstance(policy, bandit.AbstractPolicy) else (features,)
    own = policy.update(policy.init(), arm, reward)
    policy.act(own, *given, key=key)
    for other in POLICIES.values():
        if other is policy:
            continue
        state = other.init()
        rule = f"{name}, and be of type {type(own).__name__}; got .*{type(state).__name__}"
        with pytest.raises(ValueError, match=rule):
            policy.update(state, arm, reward)
        with pytest.raises(ValueError, match=rule):
            jax.jit(policy.act)(state, *given, key=key)


def test_policies_with_one_posterior_go_on_from_each_others_states(key):
    prior = bandit.NormalGamma(0.0, 1.0, 2.0, 1.0, arms=3)
    policies = bandit.VarTS(prior), bandit.TopTwoTS(prior), bandit.BayesUCB(prior)
    states = [bandit.update_many(p, p.init(), [0, 1, 2, 2], [1.0, 2, 3, 9]) for p in policies]
    for state in states[1:]:
        jax.tree.map(assert_array_equal, state, states[0])
    for policy in policies:
        arms = {int(policy.act(state, key=key)) for state in states}
        assert len(arms) == 1


@pytest.mark.parametrize("name", ["VarTS", "GaussianTS", "BernoulliTS", "UCB1"])
def test_a_state_for_another_number_of_arms_is_refused(name, key):
    policy = POLICIES[name]
    state = jax.tree.map(lambda x: x[:2], policy.init())
    rule = f"`state` must be for the 3 arms of this {name}; it is for 2"
    with pytest.raises(ValueError, match=rule):
        policy.update(state, 0, 1.0)
    with pytest.raises(ValueError, match=rule):
        jax.jit(policy.act)(state, key=key)


@pytest.mark.parametrize(("kappa", "alpha"), [(0.5, 2.0), (2.0, 2.0), (1.0, 1.25), (1.0, 4.0)])
def test_rounds_are_not_counted_from_another_prior(kappa, alpha, key):
    own = bandit.BayesUCB(bandit.NormalGamma(0.0, 1.0, 2.0, 1.0, arms=2))
    other = bandit.NormalGamma(0.0, kappa, alpha, 1.0, arms=2)
    rule = "`state` must have begun from a prior with the `(kappa|alpha)` of this policy's"
    with pytest.raises(ValueError, match=rule):
        own.act(other.update(0, 1.0), key=key)
    log = bandit.LoggedData([0, 1], [1.0, 2.0], arms=2)
    with pytest.raises(ValueError, match=rule):
        bandit.replay(own, log, state=other.update(0, 1.0), key=key)
    # Where the mean is another, rounds are still known.
    own.act(bandit.NormalGamma(9.0, 1.0, 2.0, 3.0, arms=2).update(0, 1.0), key=key)


@pytest.mark.parametrize("alpha", [2.25, 2.0])
def test_rounds_of_linear_models_are_not_counted_from_another_prior(alpha, key):
    belief = lambda alpha: bandit.LinearGaussian(np.zeros(2), np.eye(2), alpha, 1.0)
    state = bandit.LinearTS(belief(alpha)).init()
    rule = "`state` must have begun from a prior with the `alpha` of this policy's"
    with pytest.raises(ValueError, match=rule):
        bandit.LinearBayesUCB(belief(3.0)).act(state, np.eye(2), key=key)
    bandit.LinearBayesUCB(belief(alpha)).act(state, np.eye(2), key=key)


def test_files_know_the_type_of_their_state(tmp_path):
    bandit.save_state(POLICIES["C2UCB"].init(), tmp_path / "state.npz")
    with pytest.raises(ValueError, match="of type RidgeState; got one of type WeightedRidge"):
        bandit.load_state(tmp_path / "state.npz", POLICIES["VAC2UCB"].init())
