"""Data that come row by row, in arrays of fixed shape, so that nothing compiles anew."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._target import AbstractDataTarget, AbstractTarget, SamplesPrior
from ._types import Draw, Position, PRNGKey, Scalar


class GrowingTarget(AbstractDataTarget):
    """A target of which only the first rows of data count, the others not yet.

    Rows that are not filled must hold values that the likelihood accepts; their likelihood
    is computed and counts zero.

    Attributes:
        target: The target with all its rows.
        filled: Number of rows that count.
    """

    target: AbstractDataTarget
    filled: Int[Array, ""]

    @property
    def num_data(self) -> int | None:
        """Number of rows there is room for: a batch of rows stands for this many."""
        return self.target.num_data

    def init(self, *, key: PRNGKey) -> Position:
        return self.target.init(key=key)

    def constrain(self, position: Position) -> Draw:
        return self.target.constrain(position)

    def log_prior(self, position: Position) -> Scalar:
        return self.target.log_prior(position)

    def log_likelihood(
        self, position: Position, rows: Int[Array, " batch"] | None = None
    ) -> Float[Array, "..."]:
        """Return the log likelihood by row: zero for those that are not filled."""
        each = self.target.log_likelihood(position, rows)
        numbers = jnp.arange(self.num_data, dtype=jnp.int32) if rows is None else rows
        counts = numbers.astype(self.filled.dtype) < self.filled
        return jnp.where(counts, each, jnp.zeros_like(each))

    def log_density(self, position: Position) -> Scalar:
        return self.log_prior(position) + self.log_likelihood(position).sum()

    def sample_prior_position(self, *, key: PRNGKey) -> Position:
        """Return one draw from the prior, in unconstrained space."""
        if not isinstance(self.target, SamplesPrior):
            name = type(self.target).__name__
            raise ValueError(f"{name} has no `sample_prior_position` to draw from its prior.")
        return self.target.sample_prior_position(key=key)


def rows_so_far(target: AbstractTarget) -> Int[Array, ""]:
    """Return how many rows of data there are by now.

    Args:
        target: A target with data rows.
    """
    if isinstance(target, GrowingTarget):
        return target.filled
    assert isinstance(target, AbstractDataTarget)
    assert target.num_data is not None
    return jnp.asarray(target.num_data, jnp.int32)
