"""Arguments of a wrong kind are refused by name, by functions and descriptions of all kinds."""

import inspect

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from whence.models import bandit, nngp

PRIOR = bandit.NormalGamma(0.0, 1.0, 2.0, 1.0, arms=3)
POLICY = bandit.VarTS(PRIOR)  # pyright: ignore[reportCallIssue]
ARMS = bandit.GaussianArms(np.zeros((3, 4)), np.ones((3, 4)))
LINEAR = bandit.ContextualLinear(np.ones((2, 4)), 1.0, np.ones((5, 3, 2)))
LOG = bandit.LoggedData([0, 1, 2], [1.0, 0.0, 1.0], arms=3)
NETWORK = nngp.Serial(nngp.Dense(), nngp.ReLU(), nngp.Dense())
X = np.eye(3)
KEY = {"key": jr.key(0)}
SIMULATED = {"policies": {"a": POLICY}, "environment": ARMS, "horizon": 5, **KEY}
CASES = [
    (bandit.act_many, {"policy": POLICY, "state": PRIOR, "num": 2, **KEY}, ["policy"]),
    (bandit.update_many, {"policy": POLICY, "state": PRIOR, "arms": [0], "rewards": [1.0]},
     ["policy", "arms", "rewards"]),
    (bandit.simulate, SIMULATED, ["policies", "environment"]),
    (bandit.simulate_contextual, SIMULATED | {"environment": LINEAR},
     ["policies", "environment"]),
    (bandit.replay, {"policy": POLICY, "log": LOG, **KEY}, ["policy", "log", "learn"]),
    (bandit.inverse_propensity, {"policy": POLICY, "log": LOG, **KEY},
     ["policy", "log", "normalise", "draws"]),
    (bandit.sample_instances, {"prior": PRIOR, "instances": 2, **KEY}, ["prior", "instances"]),
    (bandit.bayes_regret_bound, {"prior": PRIOR, "horizon": 5}, ["prior", "horizon"]),
    (bandit.probability_best, {"state": PRIOR, **KEY}, ["state", "draws"]),
    (bandit.decide, {"state": PRIOR, **KEY}, ["state", "draws", "level"]),
    (bandit.regret_slope, {"means": [0.0, 1.0], "variances": 1.0},
     ["means", "variances", "known_variances"]),
    (nngp.Residual, {}, ["branch"]),
    (nngp.Activation, {"function": jnp.tanh}, ["function", "num_nodes"]),
    (nngp.Draws, {}, ["values"]),
    (nngp.condition_large, {"process": None, "x": X, "y": np.ones(3), **KEY}, ["process"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "given", "name"),
    [pytest.param(f, given, n, id=f"{f.__name__}.{n}") for f, given, ns in CASES for n in ns],
)
def test_a_wrong_kind_is_refused_by_name(function, given, name):
    # Without the checks of types that all tests have: users do not have them.
    raw = function if inspect.isclass(function) else inspect.unwrap(function)
    for value in ("text", {}, object()):
        with pytest.raises(ValueError, match=rf"`{name}\b.* must be"):
            raw(**{**given, name: value})


@pytest.mark.parametrize("wrong", ["text", 1.5, (2, 0), ()])
def test_shapes_of_examples_are_whole_numbers(wrong):
    network = inspect.unwrap(type(NETWORK).network)
    with pytest.raises(ValueError, match="`inputs` must be"):
        network(NETWORK, 4, wrong, key=jr.key(0))
