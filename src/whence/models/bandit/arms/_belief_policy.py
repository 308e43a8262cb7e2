"""Policies whose state is a belief about the arms."""

import equinox as eqx

from .._checks import Numbers
from .._policy import AbstractPolicy
from ._belief import AbstractBelief


class AbstractBeliefPolicy(AbstractPolicy):
    """A rule that chooses by what it believes of each arm. The state is the belief.

    Chooses by the state alone, whatever prior that began with.
    """

    prior: eqx.AbstractVar[AbstractBelief]

    @property
    def arms(self) -> int:
        """Number of arms."""
        return self.prior.arms

    def init(self, batch: tuple[int, ...] = ()) -> AbstractBelief:
        return self.prior.expand(batch)

    def update(self, state: AbstractBelief, arm: Numbers, reward: Numbers) -> AbstractBelief:
        return state.update(arm, reward)
