"""Estimates of the log density and its gradient from a part of the data."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

from ...core._convert import one_of, whole
from ...core._data import BATCHING, Epoch, Minibatches, log_density_estimate, minibatches
from ...core._target import AbstractTarget
from ...core._types import Position, PRNGKey, Scalar


class MinibatchGradient(eqx.Module):
    """The plain estimate: prior plus the likelihood of a batch, scaled up.

    Another estimator (with control variates, say) is another class with these methods;
    what it carries from step to step is its own state.

    Attributes:
        batch_size: Rows per batch; None for the exact gradient.
        batching: `"reshuffle"` or `"iid"`, see `Minibatches`.
    """

    batch_size: int | None = eqx.field(
        default=None, converter=whole("batch_size", least=1, optional=True)
    )
    batching: str = eqx.field(default="reshuffle", converter=one_of("batching", BATCHING))

    def batches(self, target: AbstractTarget) -> Minibatches:
        """Return the batches of the target, or raise `ValueError` if there are none."""
        return minibatches(target, self.batch_size, self.batching)

    def init(self, target: AbstractTarget) -> Epoch:
        """Return the state before update 0."""
        return self.batches(target).init()

    def estimate(
        self,
        target: AbstractTarget,
        flat: Float[Array, " dim"],
        form: Callable[[Float[Array, " dim"]], Position],
        epoch: Epoch,
        counter: Int[Array, ""],
        *,
        key: PRNGKey,
    ) -> tuple[Scalar, Float[Array, " dim"], Epoch]:
        """Return log density and gradient (both estimates) and the new state.

        Args:
            target: The target density.
            flat: A point in unconstrained space, as one vector.
            form: Gives the vector the form of a position.
            epoch: From `init` or the last update.
            counter: Number of this update, from 0.
            key: Belongs to this update alone.
        """
        rows, epoch = self.batches(target).next(epoch, counter, key=key)
        log_density, gradient = jax.value_and_grad(
            lambda x: log_density_estimate(target, form(x), rows)
        )(flat)
        return log_density, gradient, epoch
