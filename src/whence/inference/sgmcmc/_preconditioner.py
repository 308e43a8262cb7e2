"""Diagonal preconditioners: one step size per coordinate."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ...core._convert import number, positive
from ...core._types import Position


class AbstractPreconditioner(eqx.Module):
    """A diagonal matrix `G`, learned from the gradients, that multiplies the step size."""

    @abc.abstractmethod
    def init(self, position: Position) -> PyTree:
        """Return the state before the first update."""

    @abc.abstractmethod
    def update(self, state: PyTree, gradient: Position) -> tuple[Position | None, PyTree]:
        """Return the diagonal of `G` in the form of a position (None: all ones), and the state.

        Args:
            state: From `init` or the last update.
            gradient: Gradient of the log density at the present position.
        """


class Identity(AbstractPreconditioner):
    """The same step size for all coordinates."""

    def init(self, position: Position) -> None:
        """Return no state."""

    def update(self, state: None, gradient: Position) -> tuple[None, None]:
        return None, None


class RMSprop(AbstractPreconditioner):
    """`1 / (sqrt(v) + floor)`, with `v` a running mean of squared gradients.

    The step size is then in units of a coordinate's own scale: near a mode with full
    gradients `v` is the precision `a` and `G` is `1 / sqrt(a)`. Like published codes this
    leaves out the derivative of `G` with respect to the position, so the draws are right
    only if `v` does not follow the position: if the noise of the minibatch makes most of
    the gradient, or if `1 / (1 - memory)` updates are many autocorrelation times.

    Attributes:
        memory: Weight of the past in the running mean, in [0, 1).
        floor: Added to the root, in units of the gradient; positive.

    References:
        Li, Chen, Carlson and Carin (2016), "Preconditioned stochastic gradient Langevin
        dynamics for deep neural networks", AAAI, algorithm 1.
    """

    memory: float = eqx.field(default=0.99, converter=number("memory", least=0, below=1))
    floor: float = eqx.field(default=1e-5, converter=positive("floor"))

    def init(self, position: Position) -> Position:
        """Return negative values, which `update` reads as no gradient seen."""
        return jax.tree.map(lambda x: jnp.full_like(x, -1.0), position)

    def update(self, state: Position, gradient: Position) -> tuple[Position, Position]:
        """Return `1 / (sqrt(v) + floor)` and the new `v`."""
        # From zero, as in the paper, the first steps would be ten times too long.
        state = jax.tree.map(
            lambda v, g: jnp.where(v < 0, g**2, self.memory * v + (1 - self.memory) * g**2),
            state,
            gradient,
        )
        return jax.tree.map(lambda v: 1 / (jnp.sqrt(v) + self.floor), state), state
