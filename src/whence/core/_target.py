"""What an engine sees of a problem, never more: an unnormalised density.

Three tiers, each an interface without code. Any engine runs on an `AbstractTarget`;
minibatches, tempering and a control of the likelihood need an `AbstractDataTarget`;
names, dims, predictions and ArviZ groups need an `AbstractDescribedTarget`.
A target is a pytree: its data are leaves, so that a compiled loop serves new data.

What a target can do besides, it says by having the methods of a protocol below. Who asks:

| protocol | method | who asks |
| --- | --- | --- |
| `SamplesPrior` | `sample_prior_position` | tempering from the prior, `geweke` |
| `HasJacobian` | `log_jacobian` | `MAP(objective="posterior")` |
| `SplitsPrior` | `log_prior_terms` | prior sensitivity: the group `log_prior` |
| `Unconstrains` | `unconstrain` | `Posterior.from_draws` |
| `ReplacesData` | `with_data` | `sbc`, `geweke` |
| `HasLocals` | `at_rows`, `log_joint_rows` | minibatches, families for local latents |
| `NamesLatents` | `latents` | order of variables anywhere, `Posterior.from_draws` |
| `LabelsDraws` | `labelled` | `Posterior.draws` |
| `NamesInputs` | `name_inputs` | the group `predictions_constant_data` |
| `TakesInputs` | `new_inputs` | `Posterior.predict` at new inputs |
| `TakesNewGroups` | `new_groups` | `Posterior.predict` with `new_groups="prior"` |
| `KnowsRows` | `row_arrays` | `check`: which arrays belong to data rows |
| `NamesArrays` | `leaf_name` | messages about data |
| `DependentData` | `predict_given`, `pointwise_given_rest` | `Posterior`, leave-one-out |
"""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

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
        """Return the draw that a position stands for, in the space of the model."""


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


class LatentShape(NamedTuple):
    """Name and shape of a latent, without a value.

    Attributes:
        name: Its name in a posterior.
        shape: Shape of its value.
    """

    name: str
    shape: tuple[int, ...]


@runtime_checkable
class SamplesPrior(Protocol):
    """A target whose prior can be drawn from."""

    def sample_prior_position(self, *, key: PRNGKey) -> Position:
        """Return one draw from the prior, in unconstrained space.

        Raises:
            ValueError: If the prior is improper, or has no sampler.
        """
        ...


@runtime_checkable
class HasLocals(Protocol):
    """A data target some of whose latents may have one value for each data row.

    The density is then a prior of the global latents times a product over rows, of which
    each sees the global latents and its own local ones.
    """

    @property
    def local(self) -> tuple[str, ...]:
        """Names of the parts of a position with a leading axis of data rows; often none."""
        ...

    def at_rows(self, position: Position, rows: Int[Array, " batch"]) -> Position:
        """Return what some rows see of a position: of local parts only those rows."""
        ...

    def log_joint_rows(
        self, position: Position, rows: Int[Array, " batch"]
    ) -> tuple[Scalar, Float[Array, " batch"]]:
        """Return the terms of a log density that belong to all rows, and those of some.

        Args:
            position: From `at_rows`.
            rows: Row numbers.

        Returns:
            The log prior density of the global latents; and by row the log likelihood with
            the log prior density of its local latents. Jacobians included, in nats.
        """
        ...


@runtime_checkable
class HasJacobian(Protocol):
    """A target that knows the Jacobian of `constrain`."""

    def log_jacobian(self, position: Position) -> Scalar:
        """Return the log of the absolute Jacobian determinant of `constrain`, in nats."""
        ...


@runtime_checkable
class SplitsPrior(Protocol):
    """A target that knows the prior density of each latent."""

    def log_prior_terms(self, draw: Draw) -> dict[str, Array]:
        """Return the log prior density of one draw, by latent, in nats.

        In the space of the model, without a Jacobian; their sum, all elements together, is
        the log prior density.
        """
        ...


@runtime_checkable
class Unconstrains(Protocol):
    """A target that can invert `constrain`."""

    def unconstrain(self, draw: Draw) -> Position:
        """Return the position of a draw.

        Args:
            draw: What `constrain` returns; of a target that names its latents also a dict of
                their values by name.
        """
        ...


@runtime_checkable
class ReplacesData(Protocol):
    """A target that can be given other observed data."""

    def with_data(self, data: Mapping[str, Any]) -> AbstractDescribedTarget:
        """Return this target with other observed data of the same shapes, by name."""
        ...


@runtime_checkable
class NamesLatents(Protocol):
    """A target that knows which variables make a position, and in which order."""

    @property
    def latents(self) -> tuple[LatentShape, ...]:
        """The latents that have no fixed value, in the order of the model."""
        ...


@runtime_checkable
class LabelsDraws(Protocol):
    """A target whose draws carry labels, which compiled code does not keep."""

    def labelled(self, draws: Draw) -> Draw:
        """Return `draws` with the labels of this target."""
        ...


@runtime_checkable
class NamesInputs(Protocol):
    """A target whose predictions are at inputs that have names."""

    def name_inputs(self, inputs: tuple) -> dict[str, Array]:
        """Return the arrays in `inputs`, as `predict` takes them, by name."""
        ...


@runtime_checkable
class TakesInputs(Protocol):
    """A target that knows what its predictions may be asked at."""

    def new_inputs(self, inputs: tuple, named: Mapping[str, Any]) -> Any:
        """Return new inputs in the form that `predict` takes.

        Args:
            inputs: As the user gave them.
            named: Those given by name.

        Raises:
            ValueError: Naming the input, the rule and what was given.
        """
        ...


@runtime_checkable
class TakesNewGroups(Protocol):
    """A target that can draw the effects of groups that a fit never saw from their prior."""

    def new_groups(self, inputs: tuple, named: Mapping[str, Any]) -> Any:
        """As `new_inputs`, in which groups may be new.

        Args:
            inputs: As the user gave them.
            named: Those given by name.
        """
        ...


@runtime_checkable
class KnowsRows(Protocol):
    """A target that can say which arrays belong to data rows."""

    @property
    def num_data(self) -> int | None:
        """Number of data rows."""
        ...

    @property
    def row_arrays(self) -> tuple[str, ...]:
        """Names of the arrays of which a batch takes its rows."""
        ...


@runtime_checkable
class NamesArrays(Protocol):
    """A target that knows how the user calls the arrays in it."""

    def leaf_name(self, path: str) -> str:
        """Return the name of an array for messages, given its path with dots."""
        ...


def local_names(target: AbstractTarget | None) -> tuple[str, ...]:
    """Return the names of a target's parts with one value per data row; most have none."""
    return target.local if isinstance(target, HasLocals) else ()


def latent_names(target: AbstractTarget | None) -> tuple[str, ...]:
    """Return the names of a target's latents in order; none if it does not know them."""
    known = target.latents if isinstance(target, NamesLatents) else ()
    return tuple(latent.name for latent in known)


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
