"""Isokinetic dynamics: motion at unit speed that the gradient only turns.

With `d` dimensions, direction `u` on the unit sphere and force `f` (the gradient of the
log density, in whitened coordinates):

    dx/dt = u,    du/dt = (I - u uᵀ) f / (d - 1).

The flow leaves `exp(log density(x))` times the uniform law of `u` invariant. A turn shrinks
the sphere around `u`; counting the logarithm of that as kinetic energy, the exact flow keeps
`kinetic energy - log density`, and the error of an integrator in it is what a Metropolis
test needs: `exp(-error)` is the ratio of target densities times the Jacobian of the map.

References:
    Ver Steeg, Galstyan (2021), Hamiltonian dynamics with non-Newtonian momentum for rapid
    sampling, NeurIPS (the dynamics and the closed form of a turn).
    Robnik, De Luca, Silverstein, Seljak (2023), Microcanonical Hamiltonian Monte Carlo,
    JMLR 24.
    Robnik, Cohn-Gordon, Seljak (2025), Metropolis adjusted microcanonical Hamiltonian Monte
    Carlo, arXiv:2503.01707 (the Metropolis test).
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ...core._types import PRNGKey, Scalar
from ._integrator import LogDensityAndGradient
from ._metric import AbstractMetric, Vector


class Particle(eqx.Module):
    """Where a trajectory is.

    Attributes:
        position: Flat and unconstrained.
        direction: Of motion in whitened space, a unit vector.
        log_density: At `position`, in nats.
        gradient: Of the log density at `position`.
    """

    position: Vector
    direction: Vector
    log_density: Scalar
    gradient: Vector

    def is_finite(self) -> Bool[Array, ""]:
        """Whether log density and gradient are finite."""
        return jnp.isfinite(self.log_density) & jnp.all(jnp.isfinite(self.gradient))


def random_direction(key: PRNGKey, like: Vector) -> Vector:
    """Draw a unit vector uniformly, of the shape and dtype of `like`."""
    return _normalised(jax.random.normal(key, like.shape, like.dtype))


def perturbed(direction: Vector, size: Scalar, key: PRNGKey) -> Vector:
    """Add normal noise of standard deviation `size` and normalise: symmetric on the sphere."""
    return _normalised(direction + size * jax.random.normal(key, direction.shape, size.dtype))


def turn(direction: Vector, force: Vector, time: Scalar) -> tuple[Vector, Scalar]:
    """Turn for a time under a constant force, exactly.

    Returns:
        The new direction, and the change of kinetic energy in nats.
    """
    norm = jnp.linalg.norm(force)
    towards = force / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
    cosine = jnp.clip(jnp.dot(direction, towards), -1, 1)
    angle = time * norm / (direction.size - 1)
    # The hyperbolic functions, times exp(-angle) so that none overflows.
    decay = jnp.exp(-angle)
    along = (1 - decay) * (1 + decay + cosine * (1 - decay))
    change = angle + jnp.log1p(0.5 * (1 - cosine) * jnp.expm1(-2 * angle))
    new = _normalised(2 * decay * direction + along * towards)
    return new, (direction.size - 1) * change


class AbstractIntegrator(eqx.Module):
    """A step made of stages: turn, move, turn, with one gradient each.

    It must be reversible, that is its durations must read the same backwards; the size of
    a stage's move is that of the step over the number of stages.
    """

    stages: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def turns(self, number: Int[Array, ""]) -> tuple[Scalar | float, Scalar | float]:
        """Return the durations of the two turns of a stage, in units of the step.

        Args:
            number: Number of the stage, from 0 at the start of a trajectory.
        """


class Leapfrog(AbstractIntegrator):
    """Half a turn, the move, half a turn."""

    stages: ClassVar[int] = 1

    def turns(self, number: Int[Array, ""]) -> tuple[float, float]:
        return 0.5, 0.5


class MinimalNorm(AbstractIntegrator):
    """Two moves by half a step between three turns: a smaller error for two gradients.

    Both halves of a step have the form of a leapfrog step with mirrored durations, since
    two turns under one force make one turn.

    References:
        Omelyan, Mryglod, Folk (2003), doi:10.1016/S0010-4655(02)00754-3.
    """

    stages: ClassVar[int] = 2
    outer: ClassVar[float] = 0.1931833275037836

    def turns(self, number: Int[Array, ""]) -> tuple[Scalar, Scalar]:
        is_first, inner = number % 2 == 0, 0.5 - self.outer
        return jnp.where(is_first, self.outer, inner), jnp.where(is_first, inner, self.outer)


INTEGRATORS: dict[str, AbstractIntegrator] = {
    "leapfrog": Leapfrog(),
    "minimal_norm": MinimalNorm(),
}


def stage(
    log_density_and_grad: LogDensityAndGradient,
    metric: AbstractMetric,
    particle: Particle,
    step_size: Scalar,
    number: Int[Array, ""],
    integrator: AbstractIntegrator,
) -> tuple[Particle, Scalar]:
    """Turn, move, turn: one stage, so that every integrator needs one gradient in the code.

    Args:
        log_density_and_grad: Log density in nats and its gradient at a flat position.
        metric: Maps whitened directions to velocities.
        particle: Where to start.
        step_size: Length of the whole step; zero to evaluate at `particle.position`.
        number: Number of this stage.
        integrator: Says how long the turns are.

    Returns:
        The new particle, and the change of energy in nats.
    """
    first, last = (
        step_size * jnp.asarray(x, step_size.dtype) for x in integrator.turns(number)
    )
    drift = step_size / integrator.stages
    force = metric.adjoint(particle.gradient)
    direction, gain_first = turn(particle.direction, force, first)
    position = particle.position + drift * metric.forward(direction)
    log_density, gradient = log_density_and_grad(position)
    direction, gain_last = turn(direction, metric.adjoint(gradient), last)
    change = gain_first + gain_last - (log_density - particle.log_density)
    return Particle(position, direction, log_density, gradient), change


def _normalised(vector: Vector) -> Vector:
    return vector / jnp.linalg.norm(vector)
