"""The shape of an objective around a point: is it a maximum, and how sharp is it?"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core._types import Scalar

LARGEST = 500  # latents up to which the Hessian is made
MAX_HALVINGS = 60  # of a walk that begins with twice the standard deviation


class Shape(eqx.Module):
    """Second derivatives, and what they miss."""

    curvatures: Float[Array, " dim"]  # eigenvalues of minus the Hessian, ascending
    axes: Float[Array, "dim dim"]  # their eigenvectors, in columns
    slopes: Float[Array, " dim"]  # first derivatives along them
    # by how much the objective falls along each, both ways, as a fraction of what its
    # curvature promises; the least over half, one and two standard deviations (less where
    # those are beyond all that is finite). 1 for a parabola, 0 or less where nothing is lost
    # by going on
    declines: Float[Array, " dim"]


def shape_at(function: Callable[[Array], Scalar], point: Float[Array, " dim"]) -> Shape:
    """Return the shape of a function at a point."""
    hessian = jax.hessian(function)(point)
    curvatures, axes = jnp.linalg.eigh(-(hessian + hessian.T) / 2)
    deviations = 1 / jnp.sqrt(_floored(jnp.abs(curvatures)))
    here = function(point)

    def lost(axis, distance):
        value = here - function(point + distance * axis)
        return jnp.where(jnp.isfinite(value), value, jnp.nan)

    def decline(side):
        axis, deviation = side

        # Where nothing is finite any more, the walk was too long to say anything.
        def again(carry):
            halvings, _, value = carry
            return jnp.isnan(value) & (halvings < MAX_HALVINGS)

        def halve(carry):
            halvings, distance, _ = carry
            return halvings + 1, distance / 2, lost(axis, distance / 2)

        start = jnp.zeros((), jnp.int32), 4 * deviation, jnp.full((), jnp.nan, point.dtype)
        _, farthest, _ = jax.lax.while_loop(again, halve, start)
        distances = farthest * jnp.asarray([1.0, 0.5, 0.25], point.dtype)
        losses = jax.lax.map(lambda distance: lost(axis, distance), distances)
        return jnp.min(losses / ((distances / deviation) ** 2 / 2))

    sides = jnp.concatenate([axes.T, -axes.T]), jnp.concatenate([deviations, deviations])
    declines = jnp.min(jax.lax.map(decline, sides).reshape(2, -1), axis=0)
    return Shape(curvatures, axes, jax.grad(function)(point) @ axes, declines)


def _floored(curvatures: Array) -> Array:
    """Replace what is zero up to rounding."""
    largest = jnp.max(curvatures)
    floor = 10 * curvatures.size * jnp.finfo(curvatures.dtype).eps * largest
    return jnp.where(largest > 0, jnp.maximum(curvatures, floor), 1)
