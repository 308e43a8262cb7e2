"""The arc-cosine functions with derivatives that stay finite where two inputs coincide."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# atan(sqrt(z)) / sqrt(z) on 0 <= z <= tan(pi/8)^2, lowest power first: interpolated at the
# Chebyshev nodes in 40 digits. Errors are below the rounding of either precision, as they
# shrink 25 times with each term.
_ARCTAN_SINGLE = (
    *(0.9999999993712282, -0.33333306893048514, 0.19998183041083206),
    *(-0.14239532669648974, 0.10569828806414448, -0.06026305227658459),
)
_ARCTAN_DOUBLE = (
    *(1.0, -0.3333333333333312, 0.19999999999940893, -0.14285714279250245),
    *(0.11111110744919658, -0.09090896809064027, 0.07692045330902225, -0.06662951813629191),
    *(0.05846878297330872, -0.05035102456601552, 0.03796525745386593, -0.017805397205419446),
)


@jax.custom_jvp
def half_plane_angle(y: Array, x: Array) -> Array:
    """Return `arctan2(y, x)` for y at least 0, to 3 units in the last place.

    Of additions and multiplications only, which XLA puts in vector registers: on CPUs its
    own arctan2 is a library call for every number, and takes 10 to 30 times as long.
    """
    y, x = jnp.broadcast_arrays(y, x)
    dtype = jnp.promote_types(y.dtype, jnp.float32)
    low, high = jnp.minimum(y, jnp.abs(x)), jnp.maximum(y, jnp.abs(x))
    # atan(t) = pi/4 + atan((t - 1) / (t + 1)): one division for either half of the octant.
    upper = low > np.tan(np.pi / 8) * high
    below = jnp.where(upper, low + high, jnp.where(high > 0, high, 1))
    t = jnp.where(upper, low - high, low) / below
    square = t * t
    series = jnp.zeros_like(square)
    for coefficient in reversed(_ARCTAN_DOUBLE if dtype == jnp.float64 else _ARCTAN_SINGLE):
        series = series * square + coefficient
    angle = t * series + jnp.where(upper, np.pi / 4, 0).astype(t.dtype)
    angle = jnp.where(y > jnp.abs(x), np.pi / 2 - angle, angle)
    return jnp.where(x < 0, np.pi - angle, angle)


@half_plane_angle.defjvp
def _half_plane_angle_jvp(primals, tangents):
    (y, x), (dy, dx) = primals, tangents
    square = x**2 + y**2
    slope = (x * dy - y * dx) / jnp.where(square > 0, square, 1)
    return half_plane_angle(y, x), slope


def arcsine_angle(y: Array, x: Array) -> Array:
    """Return `arctan2(y, x)` for x at least 0."""
    # Odd in y, so that small angles keep their relative accuracy.
    return jnp.where(y < 0, -1, 1).astype(y.dtype) * half_plane_angle(
        jnp.where(y < 0, -y, y), x
    )


def safe_sqrt(x: Array) -> Array:
    """Return the root of `max(x, 0)`, with derivative 0 at and below zero."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def apart(difference: Array, size: Array) -> Array:
    """Return a difference of numbers of a size, at least 0; 0 where it is rounding.

    For what is 0 where inputs coincide and positive elsewhere: far from the origin rounding
    would make it any number, of any sign.
    """
    return jnp.where(difference > 2 * jnp.finfo(size.dtype).eps * size, difference, 0)


def _squared_root(q1: Array, q2: Array, c: Array) -> Array:
    """Return q1 q2 - c^2, and 0 where it is rounding: inputs that coincide have no angle."""
    product = q1 * q2
    square = product - c**2
    return jnp.where(square > 8 * jnp.finfo(product.dtype).eps * product, square, 0)


@jax.custom_jvp
def arc_cosine(q1: Array, q2: Array, c: Array) -> tuple[Array, Array]:
    """Return `(R - a c, a)` with R = sqrt(q1 q2 - c^2) and a = atan2(R, c).

    The angle by the arc tangent and not by arccos, which loses half the digits near zero.

    References:
        Cho, Saul (2009), Advances in Neural Information Processing Systems 22.
    """
    root = jnp.sqrt(_squared_root(q1, q2, c))
    angle = half_plane_angle(root, c)
    return root - angle * c, angle


# In d(R - a c), what diverges as R -> 0 cancels: the derivative in c is -a, in q1 it is
# R / (2 q1). The angle itself has a true cusp at R = 0; its derivative there is taken as 0,
# which is right for variances of weights (a stays 0) and a subgradient for inputs.
@arc_cosine.defjvp
def _arc_cosine_jvp(primals, tangents):
    q1, q2, c = primals
    dq1, dq2, dc = tangents
    root = safe_sqrt(_squared_root(q1, q2, c))
    excess, angle = arc_cosine(q1, q2, c)
    log1 = dq1 / jnp.where(q1 > 0, q1, 1)
    log2 = dq2 / jnp.where(q2 > 0, q2, 1)
    turn = (c * (log1 + log2) / 2 - dc) / jnp.where(root > 0, root, 1)
    return (excess, angle), (
        root * (log1 + log2) / 2 - angle * dc,
        jnp.where(root > 0, turn, 0),
    )
