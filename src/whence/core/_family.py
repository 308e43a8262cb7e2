"""`AbstractFamily`: distributions that a fit chooses from, as engines see them.

A family is a configuration; its parameters are a pytree of arrays made by `init`. Families of
no particular model are with the engines that fit them (`inference/variational`); a family that
knows a model is with that model.
"""

import abc
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from ._types import PRNGKey, Scalar

Vector = Float[Array, " dim"]
Noise = PyTree  # of one draw; of several with a leading axis
# Names and sizes of the parts of a flat position; of local latents also the number of rows.
Layout = tuple[tuple[str, int] | tuple[str, int, int], ...]


class AbstractFamily(eqx.Module):
    """Distributions of `transform(params, noise)`, the noise of a law without parameters.

    Densities are functions of the noise behind a position, so that a family need not be
    inverted. Gradient estimators use `transform`, `score` and `entropy`; a family without
    closed-form entropy can do without the last.
    """

    @abc.abstractmethod
    def bind(self, layout: Layout) -> "AbstractFamily":
        """Return the family for positions of this form; one that knows names looks them up.

        Args:
            layout: Names and sizes of the parts of a flat position, in their order.

        Raises:
            ValueError: If a name is not there.
        """

    @abc.abstractmethod
    def shared(self, layout: Layout) -> tuple[bool, ...]:
        """Return which parts are the same whatever the noise: they are computed with once."""

    @abc.abstractmethod
    def noise(self, like: Vector, num: int, *, key: PRNGKey) -> Noise:
        """Draw noise for `num` positions like `like`; its leaves have that leading axis."""

    @abc.abstractmethod
    def init(self, location: Vector) -> PyTree:
        """Return parameters of a narrow member around `location`."""

    @abc.abstractmethod
    def no_step(self, params: PyTree) -> PyTree:
        """Return the step that leaves the parameters as they are: zeros."""

    @abc.abstractmethod
    def move(self, params: PyTree, step: PyTree) -> PyTree:
        """Return the parameters after a step of the optimiser."""

    @abc.abstractmethod
    def transform(self, params: PyTree, noise: Noise) -> Vector:
        """Return the position made of `noise`."""

    @abc.abstractmethod
    def log_prob(self, params: PyTree, noise: Noise) -> Scalar:
        """Return the log density at `transform(params, noise)`, in nats."""

    @abc.abstractmethod
    def score(self, params: PyTree, noise: Noise) -> Vector:
        """Return the gradient of the log density by position, at `transform(params, noise)`."""

    @abc.abstractmethod
    def entropy(self, params: PyTree) -> Scalar:
        """Return the differential entropy, in nats."""

    @abc.abstractmethod
    def describe(self, params: PyTree) -> dict[str, Array]:
        """Return the parameters as a person thinks of them, by name."""


@runtime_checkable
class TakesTarget(Protocol):
    """A family that is made of the target: of its equations and data."""

    def at(self, target: Any) -> AbstractFamily:
        """Return the family for a target; `bind` comes after it.

        Raises:
            ValueError: If it is a family of other targets.
        """
        ...


@runtime_checkable
class OfBatches(Protocol):
    """A family whose member is a function of the data, so that it has one for some rows."""

    def of_rows(self, target: Any, rows: Array) -> tuple[AbstractFamily, Any]:
        """Return the family for some rows, and the target of these alone.

        Densities of what is local count as often as a row of the batch stands for.

        Raises:
            ValueError: If it is a function of all rows together.
        """
        ...


def bound(family: AbstractFamily, target: Any, layout: Layout) -> AbstractFamily:
    """Return a family for positions of a target."""
    own = family.at(target) if isinstance(family, TakesTarget) else family
    return own.bind(layout)
