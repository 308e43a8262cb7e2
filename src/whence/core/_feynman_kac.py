"""Laws of particles: what a particle driver runs, and what a sequence of data is.

Particle filters, samplers along a path of distributions, annealed importance sampling and
steered diffusions are Feynman-Kac models; a model of a sequence can be made into one.
"""

import abc
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ._target import AbstractTarget, Unconstrains
from ._types import Draw, Position, PRNGKey, Scalar

Particles = PyTree  # every leaf has a leading axis `particle`
Control = Any  # what all particles share: a time, a temperature, a tuned scale


class AbstractFeynmanKac(eqx.Module):
    """A law of initial particles, a mutation and a potential.

    `control` is whatever the particles share and a step may change. The functions see the
    weights because adaptive ones (a tuned mutation, a next temperature chosen by its
    effect) depend on them; plain ones ignore them.
    """

    @abc.abstractmethod
    def initial(self, *, key: PRNGKey) -> tuple[Particles, Control]:
        """Return equally weighted initial particles and the first control."""

    @abc.abstractmethod
    def mutate(
        self,
        particles: Particles,
        log_weights: Float[Array, " particle"],
        control: Control,
        *,
        key: PRNGKey,
    ) -> tuple[Particles, Control]:
        """Move every particle, independently given `control` and the weights."""

    @abc.abstractmethod
    def log_potential(
        self, particles: Particles, log_weights: Float[Array, " particle"], control: Control
    ) -> tuple[Float[Array, " particle"], Control]:
        """Return the log weight increment of every particle, in nats; `-inf` kills one."""


class AbstractSequenceTarget(AbstractTarget):
    """The posterior of parameters of a sequence of hidden states, seen one datum at a time.

    With parameters `draw = constrain(position)`, states `x_0, ..., x_{T-1}` have the density

        initial(x_0) prod_t transition(x_t | x_{t-1}) exp(log_potential(x_t)).

    States are pytrees of arrays; `time` counts from 0. A datum is a pytree of all that
    belongs to one time: what was observed, and inputs. Positions are those of the parameters;
    `log_density` may raise `NotImplementedError` where states cannot be integrated out.
    """

    @property
    @abc.abstractmethod
    def num_times(self) -> int:
        """Length of the sequence, `T`."""

    @abc.abstractmethod
    def log_prior(self, position: Position) -> Scalar:
        """Return the log prior density of parameters, the log-Jacobian included, in nats."""

    @abc.abstractmethod
    def datum(self, time: Int[Array, ""]) -> PyTree:
        """Return the datum at `time`."""

    @abc.abstractmethod
    def as_datum(self, y: Any, inputs: Any = None) -> PyTree:
        """Return a new datum in the form of `datum`; refuse, in words, what cannot be one."""

    @abc.abstractmethod
    def with_data(self, data: PyTree) -> "AbstractSequenceTarget":
        """Return this sequence with other data: data of each time, with a leading axis."""

    @abc.abstractmethod
    def initial(self, draw: Draw, *, key: PRNGKey) -> PyTree:
        """Return a state at time 0."""

    @abc.abstractmethod
    def transition(
        self, draw: Draw, state: PyTree, time: Int[Array, ""], datum: PyTree, *, key: PRNGKey
    ) -> PyTree:
        """Return a state at `time`, given that at `time - 1`; of the datum it sees inputs."""

    @abc.abstractmethod
    def log_transition(
        self, draw: Draw, state: PyTree, new: PyTree, time: Int[Array, ""], datum: PyTree
    ) -> Scalar:
        """Return the log density of the state `new` at `time`, given that before, in nats.

        For smoothers and for states as latents; of a transition without a density raise
        `NotImplementedError`.
        """

    @abc.abstractmethod
    def log_potential(
        self, draw: Draw, state: PyTree, time: Int[Array, ""], datum: PyTree
    ) -> Scalar:
        """Return the log density of the datum at `time` given the state there, in nats."""

    @abc.abstractmethod
    def join(self, position: Position, path: PyTree) -> Position:
        """Return the position of parameters and states, as the target a user has takes it.

        Args:
            position: Of the parameters.
            path: States, `(time, ...)`; left out where they are no part of positions.
        """

    @abc.abstractmethod
    def without_path(self, position: Position) -> Position:
        """Return the position of the parameters, of one that `join` returned."""


@runtime_checkable
class GuidedSequence(Protocol):
    """A sequence whose states can be proposed knowing the datum."""

    def propose(
        self, draw: Draw, state: PyTree | None, time: Array, datum: PyTree, *, key: PRNGKey
    ) -> tuple[PyTree, Scalar]:
        """Return a state at `time`, and the log density of it as a state over as a proposal.

        Args:
            draw: Parameters.
            state: At the time before; None at time 0.
            time: Counted from 0.
            datum: At `time`.
            key: A typed key.
        """
        ...

    def log_lookahead(self, draw: Draw, state: PyTree, time: Array, datum: PyTree) -> Scalar:
        """Return a guess of the log density of the datum at `time` given the state before."""
        ...


class ExactStates(NamedTuple):
    """States given data, in closed form.

    Attributes:
        mean: By time; of states of a finite set, probabilities `(time, state)`.
        variance: Of each number in `mean`.
        paths: Draws of whole paths, `(path, time, ...)`; None if there is no such law.
        log_evidence: Log density of the data, in nats.
    """

    mean: Array
    variance: Array
    paths: PyTree
    log_evidence: Scalar


@runtime_checkable
class ExactSequence(Protocol):
    """A sequence whose states may have a closed form."""

    @property
    def is_exact(self) -> bool:
        """Whether they have."""
        ...

    def exact_states(
        self, draw: Draw, paths: int, *, smooth: bool, key: PRNGKey
    ) -> ExactStates:
        """Return the states given the data up to each time, or (`smooth`) all of them."""
        ...


@runtime_checkable
class HoldsSequence(Protocol):
    """A target that may be a sequence of hidden states, integrated out or as latents."""

    @property
    def sequence(self) -> AbstractSequenceTarget | None:
        """The sequence, for engines with particles; None if the target is none."""
        ...


class SequenceAt(eqx.Module):
    """A sequence at draws of its parameters.

    Attributes:
        sequence: The sequence.
        positions: Of the parameters, with a leading axis `draw`.
        log_weights: Normalised, `(draw,)`.
    """

    sequence: AbstractSequenceTarget
    positions: Position
    log_weights: Float[Array, " draw"]


def sequence_at(target: Any, draws: Any) -> SequenceAt:
    """Return the sequence of a target at draws of its parameters.

    Args:
        target: Is or holds a sequence.
        draws: A posterior; or one draw, in a form that `unconstrain` takes.
    """
    sequence = sequence_of(target)
    if hasattr(draws, "sample"):
        flat = lambda v: jnp.asarray(v).reshape(-1, *v.shape[2:])
        positions = jax.tree.map(flat, sequence.without_path(draws.sample.positions))
    else:
        if not isinstance(sequence, Unconstrains):
            raise ValueError(f"`at` of {type(sequence).__name__} needs a posterior.")
        one = sequence.unconstrain(draws)
        positions = jax.tree.map(lambda v: jnp.asarray(v)[None], one)
    count = len(jax.tree.leaves(positions)[0])
    log_weights = getattr(draws, "log_weights", None)
    equal = jnp.full((count,), -jnp.log(count))
    return SequenceAt(
        sequence, positions, equal if log_weights is None else log_weights.ravel()
    )


def sequence_of(target: Any) -> AbstractSequenceTarget:
    """Return the sequence that a target is or holds.

    Raises:
        ValueError: If it has none.
    """
    if isinstance(target, AbstractSequenceTarget):
        return target
    found = target.sequence if isinstance(target, HoldsSequence) else None
    if found is None:
        raise ValueError(
            "`target` must be a sequence of hidden states, as "
            "`whence.condition(model, y)` of a `whence.StateSpaceModel` is; got "
            f"{type(target).__name__}."
        )
    return found
