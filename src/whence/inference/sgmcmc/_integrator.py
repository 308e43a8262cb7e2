"""One step of discretised dynamics, given a gradient."""

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ...core._types import PRNGKey, Scalar

Vector = Float[Array, " dim"]


def langevin(
    position: Vector, gradient: Vector, scale: Vector | None, step_size: Scalar, *, key: PRNGKey
) -> Vector:
    """Make one Euler-Maruyama step of overdamped Langevin dynamics.

    `x + h G g + sqrt(2 h G) noise`, where `h` multiplies the gradient of the full log
    density; the step of Welling and Teh (2011) is `2 h`.
    """
    h = step_size.astype(position.dtype) * (1.0 if scale is None else scale)
    noise = jr.normal(key, position.shape, position.dtype)
    return position + h * gradient + jnp.sqrt(2 * h) * noise
