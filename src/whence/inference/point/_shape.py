"""The shape of an objective around a point: is it a maximum, and how sharp is it?

And Newton's method, which sees what a search in mixed units does not: where the mean of incomes
and a logarithm are latents, a gradient by the mean is a millionth of that by the other.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core._types import Scalar
from ._lbfgs import search

LARGEST = 500  # latents up to which the Hessian is made
MAX_NEWTON = 30  # steps
CLOSE = 1e-3  # nats that are left to gain, where a search may end
MAX_HALVINGS = 60  # of a walk that begins with twice the standard deviation


class Shape(eqx.Module):
    """Second derivatives, and what they miss."""

    # Eigenvalues of minus the Hessian, each latent in the unit that makes its own curvature 1,
    # ascending: latents in dollars and in logarithms are then compared without rounding.
    curvatures: Float[Array, " dim"]
    axes: Float[Array, "dim dim"]  # their eigenvectors, in the units of the latents, in columns
    slopes: Float[Array, " dim"]  # first derivatives along them
    # by how much the objective falls along each, both ways, as a fraction of what its
    # curvature promises; the least over half, one and two standard deviations (less where
    # those are beyond all that is finite). 1 for a parabola, 0 or less where nothing is lost
    # by going on
    declines: Float[Array, " dim"]


def shape_at(function: Callable[[Array], Scalar], point: Float[Array, " dim"]) -> Shape:
    """Return the shape of a function at a point."""
    curvatures, axes = _eigen(function, point)
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


def promised(shape: Shape) -> Scalar:
    """Return what a step of Newton's method would gain, in nats."""
    return jnp.sum(shape.slopes**2 / _floored(jnp.abs(shape.curvatures))) / 2


def improved(function: Callable[[Array], Scalar], point: Float[Array, " dim"]) -> Array:
    """Return where steps of Newton's method lead, uphill, as long as they gain `CLOSE`."""
    down = jax.value_and_grad(lambda x: -function(x))

    def unfinished(carry):
        count, _, gain, moved = carry
        return moved & (gain > CLOSE) & (count < MAX_NEWTON)

    def step(carry):
        count, point, _, _ = carry
        value, gradient = down(point)
        curvatures, axes = _eigen(function, point)
        sizes, slopes = _floored(jnp.abs(curvatures)), gradient @ axes
        direction = -(axes @ (slopes / sizes))
        found = search(down, point, value, gradient, direction)
        gain = jnp.sum(slopes**2 / sizes) / 2
        moved = found.length > 0  # without, the direction may not even be finite
        return count + 1, jnp.where(moved, point + found.length * direction, point), gain, moved

    infinite = jnp.full((), jnp.inf, point.dtype)
    carry = jnp.zeros((), jnp.int32), point, infinite, jnp.asarray(True)
    return jax.lax.while_loop(unfinished, step, carry)[1]


def own_curvatures(function: Callable[[Array], Scalar], point: Float[Array, " dim"]) -> Array:
    """Return the second derivative by each latent."""
    slope = jax.grad(function)
    own = lambda axis: jax.jvp(slope, (point,), (axis,))[1] @ axis
    return jax.lax.map(own, jnp.eye(point.size, dtype=point.dtype))


def units_of(own: Array) -> Array:
    """Return the unit of each latent that makes its own curvature 1, or else 1."""
    known = jnp.isfinite(own) & (own != 0)
    return 1 / jnp.sqrt(jnp.where(known, jnp.abs(own), 1))


def _eigen(function: Callable[[Array], Scalar], point: Array) -> tuple[Array, Array]:
    """Return curvatures and axes of a `Shape`."""
    hessian = jax.hessian(function)(point)
    units = units_of(jnp.diagonal(hessian))
    scaled = hessian * units[None] * units[:, None]
    curvatures, axes = jnp.linalg.eigh(-(scaled + scaled.T) / 2)
    return curvatures, axes * units[:, None]


def _floored(curvatures: Array) -> Array:
    """Replace what is zero up to rounding."""
    largest = jnp.max(curvatures)
    floor = 10 * curvatures.size * jnp.finfo(curvatures.dtype).eps * largest
    return jnp.where(largest > 0, jnp.maximum(curvatures, floor), 1)
