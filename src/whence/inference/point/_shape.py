"""The shape of an objective around a point: is it a maximum, and how sharp is it?"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core._types import Scalar

LARGEST = 500  # latents up to which the Hessian is made
DISTANCES = (0.5, 1.0, 2.0)  # in standard deviations that the curvature implies


class Shape(eqx.Module):
    """Second derivatives, and what they miss.

    Attributes:
        curvatures: Eigenvalues of minus the Hessian, ascending.
        axes: Their eigenvectors, in columns.
        slopes: First derivatives along them.
        declines: By how much the objective falls along each, both ways, as a fraction of
            what its curvature promises; the least over some distances. 1 for a parabola,
            0 or less where nothing is lost by going on.
    """

    curvatures: Float[Array, " dim"]
    axes: Float[Array, "dim dim"]
    slopes: Float[Array, " dim"]
    declines: Float[Array, " dim"]


def shape_at(function: Callable[[Array], Scalar], point: Float[Array, " dim"]) -> Shape:
    """Return the shape of a function at a point.

    Args:
        function: To be maximised.
        point: Where.
    """
    hessian = jax.hessian(function)(point)
    curvatures, axes = jnp.linalg.eigh(-(hessian + hessian.T) / 2)
    deviations = 1 / jnp.sqrt(_floored(jnp.abs(curvatures)))
    here = function(point)

    def decline(axis, deviation):
        def one(distance):
            lost = here - function(point + distance * deviation * axis)
            # What is no longer finite says nothing of where the objective was going.
            fraction = lost / (distance**2 / 2)
            return jnp.where(jnp.isnan(lost) | jnp.isposinf(lost), jnp.inf, fraction)

        distances = jnp.asarray([s * d for s in (-1, 1) for d in DISTANCES], point.dtype)
        return jnp.min(jax.lax.map(one, distances))

    declines = jax.lax.map(lambda pair: decline(*pair), (axes.T, deviations))
    return Shape(curvatures, axes, jax.grad(function)(point) @ axes, declines)


def _floored(curvatures: Array) -> Array:
    """Replace what is zero up to rounding."""
    largest = jnp.max(curvatures)
    floor = 10 * curvatures.size * jnp.finfo(curvatures.dtype).eps * largest
    return jnp.where(largest > 0, jnp.maximum(curvatures, floor), 1)
