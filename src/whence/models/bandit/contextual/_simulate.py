"""Policies that see features, played on many instances at a time."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from ....core._convert import part, whole
from ....core._key import seeded
from ....core._types import PRNGKey
from .._regret import PolicyRun, Simulation
from .._simulate import checked_policies, checkpoints, play
from ._environment import AbstractContextualEnvironment


@seeded
def simulate_contextual(
    policies: Mapping[str, Any],
    environment: AbstractContextualEnvironment,
    *,
    horizon: int,
    key: PRNGKey,
) -> Simulation:
    """Play each policy on all instances of an environment with features.

    One compiled program per policy plays all instances at once and keeps the regret at a
    hundred checkpoints. All policies meet the same features and the same noise in the same
    round, so that differences between them have a smaller standard error.

    Args:
        policies: Policies by name. In a `ContextualLinear`, policies for arms without
            features may be among them, to see what it costs to ignore the features.
        environment: Instances of the problem.
        horizon: Number of rounds.
        key: For features, rewards and policies.

    Returns:
        A `Simulation`, by name of the policy.

    Raises:
        ValueError: If there is no policy, a policy does not fit the environment, there are
            fewer rounds of features than `horizon`, or a mean reward turns out impossible.
    """
    part("environment", AbstractContextualEnvironment)(environment)
    for name, policy in checked_policies(policies).items():
        if complaint := environment.accepts(policy):
            raise ValueError(f"Policy {name!r} must be one that {complaint}.")
    horizon = whole("horizon", least=1)(horizon)
    if environment.rounds is not None and horizon > environment.rounds:
        raise ValueError(
            f"`horizon` must be at most {environment.rounds}, the number of rounds of "
            f"`contexts`; got {horizon}."
        )
    edges = checkpoints(horizon)
    runs = {}
    for name, policy in policies.items():
        regret, pulls = _play(policy, environment, jnp.asarray(edges), key)
        if not np.isfinite(regret).all():
            raise ValueError(
                f"The regret of {name!r} is not finite: `contexts` must be finite, and mean "
                "rewards be from 0 to 1 where the rewards are."
            )
        runs[name] = PolicyRun(edges[1:], np.asarray(regret), np.asarray(pulls))
    return Simulation(runs)


@eqx.filter_jit
def _play(policy, environment, edges, key) -> tuple[Array, Array]:
    def turn(t, state, pulls):
        return environment.turn(policy, state, t, key=jr.fold_in(key, t))

    arms, instances = environment.arms, environment.instances
    return play(policy, turn, arms, instances, environment.coefficients.dtype, edges)
