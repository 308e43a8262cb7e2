"""Laws of particles: what a particle driver runs, and what a sequence of data is.

Particle filters, samplers along a path of distributions, annealed importance sampling and
steered diffusions are Feynman-Kac models; a model of a sequence can be made into one.
"""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Int, PyTree

from ._target import AbstractTarget
from ._types import PRNGKey, Scalar

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

        initial(x_0) prod_t transition(x_t | x_{t-1}) exp(log_potential(x_t, t)).

    States are pytrees of arrays; `time` counts from 0.
    """

    @property
    @abc.abstractmethod
    def num_times(self) -> int:
        """Length of the sequence, `T`."""

    @abc.abstractmethod
    def initial(self, draw: Any, *, key: PRNGKey) -> PyTree:
        """Return a state at time 0."""

    @abc.abstractmethod
    def transition(
        self, draw: Any, state: PyTree, time: Int[Array, ""], *, key: PRNGKey
    ) -> PyTree:
        """Return a state at `time`, given that at `time - 1`."""

    @abc.abstractmethod
    def log_transition(
        self, draw: Any, state: PyTree, new: PyTree, time: Int[Array, ""]
    ) -> Scalar:
        """Return the log density of the state `new` at `time`, given that before, in nats.

        For smoothers and for states as latents; of a transition without a density raise
        `NotImplementedError`.
        """

    @abc.abstractmethod
    def log_potential(self, draw: Any, state: PyTree, time: Int[Array, ""]) -> Scalar:
        """Return the log density of the datum at `time` given the state there, in nats."""
