"""What a policy that chooses several actions at once is, and the oracles that choose for it."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ....core._convert import whole
from ....core._key import seeded
from ....core._types import PRNGKey
from .._checks import Numbers, require_arm
from .._policy import AbstractLearner

Chosen = Int[Array, "position *batch"]
# From a value of each action to the indices of those chosen: (action,) to (position,).
Oracle = Callable[[Array], Array]


def checked_oracle(oracle: Any) -> Any:
    """Return an oracle."""
    if not callable(oracle):
        raise ValueError(f"`oracle` must be a function, as `TopK(5)`; got {oracle!r}.")
    return oracle


class TopK(eqx.Module):
    """The oracle that chooses the actions with the highest values, the highest first.

    Attributes:
        size: How many.
    """

    size: int = eqx.field(converter=whole("size", least=1))

    def __call__(self, values: Float[Array, " action"]) -> Int[Array, " position"]:
        """Return the indices of the actions with the highest values.

        Raises:
            ValueError: If there are fewer actions than are to be chosen.
        """
        if values.shape[0] < self.size:
            raise ValueError(
                f"`size` must be at most the number of actions, {values.shape[0]}; "
                f"got {self.size}."
            )
        return jax.lax.top_k(values, self.size)[1]


class AbstractCombinatorialPolicy(AbstractLearner):
    """A rule that chooses a set of actions by their features: pure functions on a state.

    It gives each action a value, and an oracle chooses the set that is best for these
    values.
    """

    features: eqx.AbstractVar[int]  # number of features of an action
    oracle: eqx.AbstractVar[Oracle]

    @abc.abstractmethod
    def values(
        self, state: Any, features: Numbers, *, key: PRNGKey
    ) -> Float[Array, "action *batch"]:
        """Return what each action is worth to the oracle.

        Args:
            state: From `init` or `update`.
            features: Features of each action, shape `(action, feature, *batch)`.
            key: For policies that draw.
        """

    @abc.abstractmethod
    def update(
        self, state: Any, features: Numbers, rewards: Numbers, observed: Numbers | None = None
    ) -> Any:
        """Return the state after the rewards of one round.

        Args:
            state: From `init` or `update`.
            features: Features of the actions chosen, shape `(position, feature, *batch)`.
            rewards: What they gave, shape `(position, *batch)`.
            observed: Which rewards were seen, shape `(position, *batch)`; by default all.
                The others are not used, but must be finite.

        Raises:
            ValueError: If shapes do not match or a value is not possible.
        """

    @seeded
    def act(self, state: Any, features: Numbers, *, key: PRNGKey) -> Chosen:
        """Return the indices of the actions chosen, shape `(position, *batch)`.

        Args:
            state: From `init` or `update`.
            features: Features of each action, shape `(action, feature, *batch)`.
            key: For the choice; policies that leave nothing to chance do not use it.

        Raises:
            ValueError: If the shape is another, a value is not finite, or the oracle
                returns something else than indices.
        """
        return apply_oracle(self.oracle, self.values(state, features, key=key))


def apply_oracle(oracle: Oracle, values: Float[Array, "action *batch"]) -> Chosen:
    """Return the indices that an oracle chooses, for every problem of a batch."""
    one = jax.eval_shape(oracle, jax.ShapeDtypeStruct(values.shape[:1], values.dtype))
    if len(getattr(one, "shape", ())) != 1 or not jnp.issubdtype(one.dtype, jnp.integer):
        raise ValueError(f"`oracle` must return a vector of indices; it returns {one}.")
    flat = values.reshape(values.shape[0], -1)
    chosen = jax.vmap(oracle, in_axes=1, out_axes=1)(flat)
    chosen = chosen.reshape(one.shape[0], *values.shape[1:])
    require_arm(chosen, values.shape[0])
    return chosen
