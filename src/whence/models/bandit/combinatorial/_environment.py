"""Environments in which a set of actions is chosen and each gives a reward of its own."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ....core._convert import flag
from ....core._types import PRNGKey
from .._checks import Numbers, one_hot
from ..contextual._environment import (
    AbstractContextualEnvironment,
    Contexts,
    Turn,
    checked_problem,
    wrong_number,
)
from ._abstract_policy import AbstractCombinatorialPolicy, apply_oracle


class ContextualCombinatorial(AbstractContextualEnvironment):
    """Rewards of 0 or 1 with probability `features @ coefficients`: several actions per round.

    Either all chosen actions give a reward that is seen, and a set is worth the sum; or, in
    a cascade, they are gone through in order until the first succeeds, those after it stay
    unseen, and a set is worth the probability that one succeeds. Regret is against the set
    that the policy's oracle would choose if it knew the probabilities.

    Args:
        coefficients: The true coefficients, shape `(feature, instance)`.
        contexts: Features of the actions, as for `ContextualLinear`. Probabilities that
            follow from them and are not from 0 to 1 are found in `simulate_contextual`.
        cascade: Whether only what comes up to the first success is seen.

    Raises:
        ValueError: If shapes do not match or a value is not finite.
    """

    coefficients: Float[Array, "feature instance"]
    contexts: Contexts
    cascade: bool

    def __init__(self, coefficients: Numbers, contexts: Any, *, cascade: bool = False):
        self.coefficients, self.contexts = checked_problem(coefficients, contexts)
        self.cascade = flag("cascade")(cascade)

    def accepts(self, policy: Any) -> str:
        if not isinstance(policy, AbstractCombinatorialPolicy):
            return f"chooses sets of actions; it is a {type(policy).__name__}"
        return wrong_number("features", policy.features, self.coefficients.shape[0])

    def turn(self, policy: Any, state: Any, round: Array, *, key: PRNGKey) -> Turn:
        key_context, key_reward, key_act = jr.split(key, 3)
        x = self.draw_features(round, key=key_context)
        probs = jnp.einsum("af...,f...->a...", x, self.coefficients)
        success = (jr.uniform(key_reward, probs.shape, probs.dtype) < probs).astype(x.dtype)
        chosen = policy.act(state, x, key=key_act)
        rewards = jnp.take_along_axis(success, chosen, 0)
        of_chosen = jnp.take_along_axis(x, chosen[:, None], 0)
        state = policy.update(state, of_chosen, rewards, self._seen(rewards))
        best = apply_oracle(policy.oracle, probs)
        gap = self._worth(probs, best) - self._worth(probs, chosen)
        possible = jnp.all((probs >= -_TOLERANCE) & (probs <= 1 + _TOLERANCE), 0)
        hit = jnp.any(one_hot(chosen, x.shape[0]), 1)
        return state, hit, jnp.where(possible, gap, jnp.nan)

    def _seen(self, rewards):
        if not self.cascade:
            return jnp.ones(rewards.shape, bool)
        return jnp.cumsum(rewards, 0) - rewards == 0  # no success before this one

    def _worth(self, probs, chosen):
        mine = jnp.take_along_axis(probs, chosen, 0)
        return 1 - jnp.prod(1 - mine, 0) if self.cascade else jnp.sum(mine, 0)


# Rounding of a sum of products; probabilities further outside of 0 to 1 are refused.
_TOLERANCE = 1e-5
