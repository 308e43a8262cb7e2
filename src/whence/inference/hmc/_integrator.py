"""Velocity Verlet on flat vectors, with a momentum that the metric has whitened.

Let `L` be the linear map of the metric, so that `L L^T` is the inverse mass matrix. With
the momentum in units in which it is standard normal, Hamilton's equations are
`dx/dt = L p` and `dp/dt = L^T (gradient of the log density at x)`.
"""

from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, Float

from ...core._types import Scalar
from ._metric import AbstractMetric, Vector, kinetic_energy

LogDensityAndGradient = Callable[[Vector], tuple[Scalar, Vector]]


class End(eqx.Module):
    """Where a trajectory is integrated from: what one leapfrog step needs."""

    position: Vector
    momentum: Vector
    force: Vector


class PhasePoint(eqx.Module):
    """A point in phase space with what the next step would otherwise recompute.

    Attributes:
        position: Unconstrained flat position.
        momentum: Whitened momentum, standard normal under the target.
        log_density: At `position`, in nats.
        gradient: Gradient of the log density at `position`, in its own coordinates.
        force: `metric.adjoint(gradient)`.
    """

    position: Vector
    momentum: Vector
    log_density: Scalar
    gradient: Vector
    force: Vector

    def end(self) -> End:
        """Return the part that the integrator needs."""
        return End(self.position, self.momentum, self.force)

    def energy(self) -> Scalar:
        """Return the Hamiltonian, in nats."""
        return kinetic_energy(self.momentum) - self.log_density


def leapfrog(
    log_density_and_grad: LogDensityAndGradient,
    metric: AbstractMetric,
    point: PhasePoint | End,
    step_size: Float[Array, ""],
) -> PhasePoint:
    """Make one step of velocity Verlet: second order, reversible, volume preserving.

    Args:
        log_density_and_grad: Log density in nats and its gradient at a flat position.
        metric: Maps whitened momenta to velocities.
        point: Where to start; its `force` must belong to `metric`.
        step_size: Negative to go backwards in time, zero to evaluate at `point.position`.
    """
    half = point.momentum + 0.5 * step_size * point.force
    position = point.position + step_size * metric.forward(half)
    log_density, gradient = log_density_and_grad(position)
    force = metric.adjoint(gradient)
    momentum = half + 0.5 * step_size * force
    return PhasePoint(position, momentum, log_density, gradient, force)
