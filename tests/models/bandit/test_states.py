"""States of policies are not interchangeable, though fields have the same names."""

import jax
import numpy as np
import pytest

from whence.models import bandit

POLICIES = {
    "VarTS": bandit.VarTS(bandit.NormalGamma(0.0, 1.0, 2.0, 1.0, arms=3)),
    "GaussianTS": bandit.GaussianTS(1.0, arms=3),
    "BernoulliTS": bandit.BernoulliTS(bandit.BetaBernoulli(1.0, 1.0, arms=3)),
    "UCB1": bandit.UCB1(3),
    "LinearTS": bandit.LinearTS(bandit.LinearGaussian(np.zeros(3), np.eye(3), 3.0, 2.0)),
    "C2UCB": bandit.C2UCB(3, bandit.TopK(2), rho=1.0),
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_state_of_another_policy_is_refused(name, key):
    policy, features = POLICIES[name], np.eye(3)
    arm, reward = (1, 1.0) if isinstance(policy, bandit.AbstractPolicy) else (features[0], 1.0)
    if name == "C2UCB":
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
