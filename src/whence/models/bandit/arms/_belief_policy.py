"""Policies whose state is a belief about the arms."""

import equinox as eqx

from .._checks import Numbers
from .._policy import AbstractPolicy
from ._belief import AbstractBelief


class AbstractBeliefPolicy(AbstractPolicy):
    """A rule that chooses by what it believes of each arm. The state is the belief."""

    prior: eqx.AbstractVar[AbstractBelief]

    @property
    def arms(self) -> int:
        """Number of arms."""
        return self.prior.arms

    def init(self, batch: tuple[int, ...] = ()) -> AbstractBelief:
        """Return the prior, for a batch of problems.

        Args:
            batch: Shape of the batch.
        """
        return self.prior.expand(batch)

    def update(self, state: AbstractBelief, arm: Numbers, reward: Numbers) -> AbstractBelief:
        """Return the belief after a reward.

        Args:
            state: The belief.
            arm: The arm that was pulled, shape `(*batch,)`.
            reward: What it gave, shape `(*batch,)`.

        Raises:
            ValueError: If the arm does not exist or the reward is impossible.
        """
        return state.update(arm, reward)
