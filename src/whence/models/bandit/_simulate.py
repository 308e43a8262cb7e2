"""Policies played against environments, many instances at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Key

from ...core._convert import flag, part, whole
from ...core._key import seeded
from ...core._types import PRNGKey
from ._checks import one_hot
from ._policy import AbstractPolicy
from ._regret import PolicyRun, Simulation
from .arms._environment import AbstractEnvironment

_CHECKPOINTS = 100


@seeded
def simulate(
    policies: Mapping[str, AbstractPolicy],
    environment: AbstractEnvironment,
    *,
    horizon: int,
    key: PRNGKey,
    common_random_numbers: bool = True,
) -> Simulation:
    """Play each policy on all instances of an environment.

    One compiled program per policy plays all instances at once and keeps the regret at a
    hundred checkpoints.

    Args:
        policies: Policies by name.
        environment: Instances of the problem.
        horizon: Number of rounds.
        key: For rewards and policies.
        common_random_numbers: Whether all policies get the same rewards: the n-th pull of
            an arm gives the same whenever it comes, so that differences between policies
            have a smaller standard error.

    Returns:
        A `Simulation`, by name of the policy.

    Raises:
        ValueError: If there is no policy, a policy is for another number of arms than the
            environment has, or the horizon is shorter than that number.
    """
    part("environment", AbstractEnvironment)(environment)
    flag("common_random_numbers")(common_random_numbers)
    for name, policy in checked_policies(policies).items():
        part(f"policies[{name!r}]", AbstractPolicy)(policy)
        if policy.arms != environment.arms:
            raise ValueError(
                f"Policy {name!r} must be for the {environment.arms} arms of the environment; "
                f"it is for {policy.arms}."
            )
    horizon = whole("horizon", least=environment.arms)(horizon)
    key_rewards, key_policy = jr.split(key)
    keys = _keys(environment, key_rewards) if common_random_numbers else None
    edges = checkpoints(horizon)
    runs = {}
    for name, policy in policies.items():
        regret, pulls = _play(policy, environment, keys, jnp.asarray(edges), key_policy)
        runs[name] = PolicyRun(edges[1:], np.asarray(regret), np.asarray(pulls))
    return Simulation(runs)


def checked_policies(policies: Any) -> Mapping[str, Any]:
    """Return policies by name; raise unless there are some."""
    if not isinstance(policies, Mapping) or not policies:
        raise ValueError(
            f"`policies` must be a dict of at least one policy by name; got {policies!r}."
        )
    return policies


def checkpoints(horizon: int) -> np.ndarray:
    """Return 0 and the numbers of rounds at which regret is kept."""
    return np.unique(np.linspace(0, horizon, _CHECKPOINTS + 1).round().astype(int))


def play(policy: Any, turn: Callable, arms: int, instances: int, dtype: Any, edges: Array):
    """Play rounds; return regret at checkpoints, `(checkpoint, instance)`, and pulls of arms.

    `turn` takes the number of the round, the state and the pulls so far; it returns the new
    state, which arms are pulled, and the regret.
    """

    def one_round(t, carry):
        state, pulls, regret = carry
        state, hit, gap = turn(t, state, pulls)
        return state, pulls + hit, regret + gap

    def until_checkpoint(carry, edge):
        carry = jax.lax.fori_loop(edge[0], edge[1], one_round, carry)
        return carry, carry[-1]

    none = jnp.zeros((arms, instances), jnp.int32), jnp.zeros(instances, dtype)
    stretches = jnp.stack([edges[:-1], edges[1:]], 1)
    (_, pulls, _), regret = jax.lax.scan(
        until_checkpoint, (policy.init((instances,)), *none), stretches
    )
    return regret, pulls


def _keys(environment: AbstractEnvironment, key: PRNGKey) -> Key[Array, "arm instance"]:
    """Return a key for each arm of each instance."""
    # Always of Threefry: vectorised, the other generators use one key for all instances.
    seed = jr.wrap_key_data(jr.bits(key, (2,), jnp.uint32), impl="threefry2x32")
    return jr.split(seed, (environment.arms, environment.instances))


@eqx.filter_jit
def _play(policy, environment, keys, edges, key) -> tuple[Array, Array]:
    """Return regret at the checkpoints, `(checkpoint, instance)`, and pulls of each arm.

    With `keys`, `(arm, instance)`, the n-th reward of an arm is drawn with the n-th key that
    follows from the arm's: nothing needs to be drawn beforehand and kept.
    """
    means = environment.means
    arms, instances = means.shape
    gaps = jnp.max(means, 0) - means

    def turn(t, state, pulls):
        key_act, key_reward = jr.split(jr.fold_in(key, t))
        arm = policy.act(state, key=key_act)
        at = arm, jnp.arange(instances)
        if keys is None:
            reward = environment.pull(arm, key=key_reward)
        else:
            now = jax.vmap(jr.fold_in)(keys[at], pulls[at])
            reward = environment.pull_keyed(arm, keys=now)
        return policy.update(state, arm, reward), one_hot(arm, arms), gaps[at]

    return play(policy, turn, arms, instances, means.dtype, edges)
