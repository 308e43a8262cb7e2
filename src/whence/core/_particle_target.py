"""A law that only weighted particles know: its density cannot be evaluated."""

import abc

from jaxtyping import Array

from ._feynman_kac import AbstractFeynmanKac, Control, Particles
from ._target import AbstractTarget
from ._types import Position


class AbstractParticleTarget(AbstractTarget):
    """A law that is the end of a Feynman-Kac model of fixed length.

    A steered diffusion is one. `log_density` raises `NotImplementedError`; engines that need
    it cannot run. The evidence is the integral of the weights.
    """

    @property
    @abc.abstractmethod
    def num_steps(self) -> int:
        """Steps of the driver, each with a mutation and a potential."""

    @abc.abstractmethod
    def feynman_kac(self, num: int) -> AbstractFeynmanKac:
        """Return the model, of `num` particles."""

    @abc.abstractmethod
    def positions(self, particles: Particles) -> Position:
        """Return positions, leading axis `particle`."""

    @abc.abstractmethod
    def stats(self, control: Control) -> dict[str, Array]:
        """Return what to record of a step, after it: fields of `ParticleHistory`."""
