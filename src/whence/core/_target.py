"""What an engine sees of a problem, never more: an unnormalised density.

Three tiers, each an interface without code. Any engine runs on an `AbstractTarget`;
minibatches, tempering and a control of the likelihood need an `AbstractDataTarget`;
names, dims, predictions and ArviZ groups need an `AbstractDescribedTarget`.
A target is a pytree: its data are leaves, so that a compiled loop serves new data.
"""

import abc
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
from jaxtyping import Array, Float, Int

from ._types import Draw, Position, PRNGKey, Scalar


class AbstractTarget(eqx.Module):
    """An unnormalised density on unconstrained space."""

    @abc.abstractmethod
    def init(self, *, key: PRNGKey) -> Position:
        """Return a random initial position: a pytree of floating-point arrays."""

    @abc.abstractmethod
    def log_density(self, position: Position) -> Scalar:
        """Return the log density in nats, the log-Jacobian of `constrain` included."""

    @abc.abstractmethod
    def constrain(self, position: Position) -> Draw:
        """Map a position to the space the user speaks of."""


class AbstractDataTarget(AbstractTarget):
    """A target that is a prior times a product over data rows.

    `log_density(x) = log_prior(x) + log_likelihood(x).sum()`.
    """

    @property
    @abc.abstractmethod
    def num_data(self) -> int | None:
        """Number of data rows; None if the likelihood is no product over rows."""

    @abc.abstractmethod
    def log_prior(self, position: Position) -> Scalar:
        """Return the log prior density, the log-Jacobian of `constrain` included."""

    @abc.abstractmethod
    def log_likelihood(
        self, position: Position, rows: Int[Array, " batch"] | None = None
    ) -> Float[Array, "..."]:
        """Return the log likelihood, one entry per row in `rows` (all rows if None)."""


class AbstractDescribedTarget(AbstractDataTarget):
    """A target that can say what its numbers mean; `Posterior` and ArviZ ask."""

    @abc.abstractmethod
    def variables(self, draw: Draw) -> dict[str, Array]:
        """Return latents and derived values of one draw by name."""

    @property
    @abc.abstractmethod
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Names of the axes, by variable, for those that have names."""

    @property
    @abc.abstractmethod
    def coords(self) -> Mapping[str, Any]:
        """Labels along named axes."""

    @property
    @abc.abstractmethod
    def observed_data(self) -> dict[str, Array]:
        """Observed values by name."""

    @property
    @abc.abstractmethod
    def constant_data(self) -> dict[str, Array]:
        """Inputs (covariates) by name."""

    @abc.abstractmethod
    def pointwise(self, draw: Draw) -> dict[str, Array]:
        """Return the pointwise log likelihood of one draw, by observed variable."""

    @abc.abstractmethod
    def predict(self, draw: Draw, inputs: tuple | None, *, key: PRNGKey) -> dict[str, Array]:
        """Return one data set drawn given one draw, at new inputs or (None) the old ones.

        Given the draw alone, not the observed data: prior predictive draws and calibration
        are made of it.
        """

    @abc.abstractmethod
    def sample_prior(self, *, key: PRNGKey) -> Draw:
        """Return one draw from the prior."""


@runtime_checkable
class DependentData(Protocol):
    """A described target whose data need not be independent given a draw."""

    def predict_given(
        self, draw: Draw, inputs: tuple | None, *, key: PRNGKey
    ) -> dict[str, Array]:
        """As `predict`, given the observed data too: posterior predictive draws."""
        ...

    def pointwise_given_rest(self, draw: Draw) -> dict[str, Array]:
        """As `pointwise`, of each datum given all others: for leave-one-out."""
        ...
