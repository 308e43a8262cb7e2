"""Nodes on a line for an integrand of one peak, however narrow, and heavy tails."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ....core._types import Scalar

REACH = 4.2  # in t; a node at the end is sinh(4.2) = 33 spreads from the peak
GRID_POINTS = 81  # looked at together
LIMIT = 300.0  # points of larger size have no weight, and their exponentials overflow


def nodes_on_line(
    integrand: Callable[[Scalar], Scalar], grid: Array, num_nodes: int
) -> tuple[Array, Array]:
    """Return nodes around the peak, spread by sinh, and the logarithms of their widths.

    They are constants to differentiation: the integral at fixed nodes is right to rounding,
    and so is its derivative.
    """

    def value(point):
        found = integrand(point)
        return jnp.where(jnp.isfinite(found), found, -jnp.inf)

    # In stages of as many points each, so that the integrand is compiled once.
    far = jnp.pad(grid, (0, -len(grid) % GRID_POINTS), mode="edge").reshape(-1, GRID_POINTS)
    unit = jnp.linspace(-1, 1, GRID_POINTS, dtype=grid.dtype)
    near = jnp.stack([width * unit for width in (0.5, 0.02, 0.001)])
    widths = jnp.asarray(np.geomspace(2.0**-12, 2.0**9, (GRID_POINTS - 1) // 2), grid.dtype)
    last = jnp.concatenate([-widths, jnp.zeros((1,), grid.dtype), widths])

    def look(carry, stage):
        highest, peak = carry
        offsets, follows = stage
        points = follows * peak + offsets
        values = jax.vmap(value)(points)
        best = jnp.argmax(values)
        better = values[best] > highest
        carry = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), (values[best], points[best]), carry
        )
        return carry, values

    stages = jnp.concatenate([far, near, last[None]])
    follows = jnp.asarray([0.0] * len(far) + [1.0] * 4, grid.dtype)
    start = jnp.asarray(-jnp.inf, grid.dtype), grid[0]
    (_, peak), values = jax.lax.scan(look, start, (stages, follows))
    # On each side: how far until the integrand has fallen by half a nat, as it does one
    # standard deviation from the peak of a normal density, and until nothing is left of it.
    half = len(widths)
    sides = (values[-1, half] - values[-1, :half]), values[-1, half] - values[-1, half + 1 :]
    left, right = (_spread(drop, widths) for drop in sides)
    mean, skew = (left + right) / 2, (right - left) / 2
    t = jnp.linspace(-REACH, REACH, num_nodes, dtype=grid.dtype)
    points = peak + mean * jnp.sinh(t) + skew * (jnp.cosh(t) - 1)
    log_widths = jnp.log((mean * jnp.cosh(t) + skew * jnp.sinh(t)) * (t[1] - t[0]))
    limit = min(LIMIT, float(np.log(np.finfo(grid.dtype).max)) / 2 - 2)
    points = jnp.clip(points, -limit, limit)
    return jax.lax.stop_gradient((points, log_widths))


def _spread(drop: Array, widths: Array) -> Scalar:
    """Return the scale of the nodes on one side, from what is lost at some distances."""
    nearest = jnp.argmin(jnp.where(jnp.isfinite(drop), jnp.abs(drop - 0.5), jnp.inf))
    deviation = widths[nearest] / jnp.sqrt(2 * jnp.clip(drop[nearest], 0.1, 2.0))
    gone = jnp.where(jnp.max(drop) > 30, widths[jnp.argmax(drop > 30)], widths[-1])
    return jnp.clip(gone / float(np.sinh(REACH)), deviation, 2 * deviation)


def log_grid(centre: Scalar) -> Array:
    """Return logarithms of scales to look among: all there are, and finer around one."""
    wide = jnp.linspace(-60, 60, 241, dtype=centre.dtype)
    fine = jnp.linspace(-15, 15, 241, dtype=centre.dtype)
    return jnp.concatenate([wide, centre + fine])


def on_stretch(z: Array, low: Scalar, high: Scalar) -> tuple[Array, Array]:
    """Map the line to a stretch of it; return points, and the log of the slope there.

    Ends may be infinite. Far from them the map is a shift, near them it is exponential: an
    integrand that ends in a jump, or in a power, becomes one that dies out smoothly. It is
    differentiable by the ends.
    """
    below, above = jnp.isfinite(low), jnp.isfinite(high)
    start, end = jnp.where(below, low, 0), jnp.where(above, high, 0)
    length = jnp.where(below & above, end - start, jnp.inf)
    share = -jnp.expm1(-length)
    from_low = start + jnp.log1p(share / (jnp.exp(-z) + jnp.exp(-length)))
    slope = jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(length - z) + jnp.log(share)
    point = jnp.where(above, end - jax.nn.softplus(-z), z)
    return (
        jnp.where(below, from_low, point),
        jnp.where(below, slope, jnp.where(above, jax.nn.log_sigmoid(-z), 0)),
    )
