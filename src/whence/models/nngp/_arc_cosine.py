"""The arc-cosine functions with derivatives that stay finite where two inputs coincide."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def safe_sqrt(x: Array) -> Array:
    """Return the root of `max(x, 0)`, with derivative 0 at and below zero.

    Args:
        x: Any shape.
    """
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _squared_root(q1: Array, q2: Array, c: Array) -> Array:
    """Return q1 q2 - c^2, and 0 where it is rounding: inputs that coincide have no angle."""
    product = q1 * q2
    square = product - c**2
    return jnp.where(square > 8 * jnp.finfo(product.dtype).eps * product, square, 0)


@jax.custom_jvp
def arc_cosine(q1: Array, q2: Array, c: Array) -> tuple[Array, Array]:
    """Return `(R - a c, a)` with R = sqrt(q1 q2 - c^2) and a = atan2(R, c).

    The angle by atan2 and not by arccos, which loses half the digits near zero.

    Args:
        q1: Variance of the first unit.
        q2: Variance of the second.
        c: Covariance.

    References:
        Cho, Saul (2009), Advances in Neural Information Processing Systems 22.
    """
    root = jnp.sqrt(_squared_root(q1, q2, c))
    angle = jnp.arctan2(root, c)
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
