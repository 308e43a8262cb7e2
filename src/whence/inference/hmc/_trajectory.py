"""What a trajectory offers to the loop that integrates it."""

import abc

import equinox as eqx
from jaxtyping import Array, Bool, Int

from ...core._types import Scalar
from ._integrator import End, PhasePoint
from ._metric import Vector

Flag = Bool[Array, ""]


class Proposal(eqx.Module):
    """A point of a trajectory that may become the next state of the chain."""

    position: Vector
    gradient: Vector
    log_density: Scalar
    energy: Scalar


class AbstractTrajectory(eqx.Module):
    """A trajectory under construction: parts, each of leapfrog steps one after the other.

    Attributes:
        candidate: After a single leaf: that leaf if its energy is finite, else what the
            trajectory was started with.
        proposal: The next state of the chain.
        step: Step size, negative to go backwards in time.
    """

    candidate: eqx.AbstractVar[Proposal]
    proposal: eqx.AbstractVar[Proposal]
    step: eqx.AbstractVar[Scalar]

    @abc.abstractmethod
    def is_growing(self) -> Flag:
        """Whether another part is wanted."""

    @abc.abstractmethod
    def is_extending(self) -> Flag:
        """Whether the present part wants another leapfrog step; at its start it does."""

    @abc.abstractmethod
    def end(self) -> End:
        """Return where to integrate from, by `step`."""

    @abc.abstractmethod
    def extend(self, point: PhasePoint) -> "AbstractTrajectory":
        """Append the point that lies one `step` from the end."""

    @abc.abstractmethod
    def close(self) -> "AbstractTrajectory":
        """Join the part that has just ended to what there was before."""

    @abc.abstractmethod
    def acceptance_rate(self) -> Scalar:
        """Return the acceptance probability that the step size is adapted to."""

    @abc.abstractmethod
    def num_steps(self) -> Int[Array, ""]:
        """Return the number of leapfrog steps so far."""

    @abc.abstractmethod
    def stats(self) -> dict[str, Array]:
        """Return statistics by the names of ArviZ's `sample_stats`."""
