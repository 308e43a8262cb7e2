"""One step of discretised dynamics, given a gradient."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree

from ...core._types import Position, PRNGKey, Scalar


def langevin(
    position: Position,
    gradient: Position,
    scale: Position | None,
    step_size: Scalar,
    *,
    key: PRNGKey,
) -> Position:
    """Make one Euler-Maruyama step of overdamped Langevin dynamics.

    `x + h G g + sqrt(2 h G) noise`, where `h` multiplies the gradient of the full log
    density; the step of Welling and Teh (2011) is `2 h`.

    Args:
        position: Where the step starts.
        gradient: Gradient of the log density there, or an estimate of it.
        scale: Diagonal of the preconditioner `G`; None for the identity.
        step_size: `h`.
        key: For the noise.
    """
    # One draw for all leaves: a generator per leaf doubles the time to compile a network.
    flat, unravel = ravel_pytree(position)
    noise = unravel(jr.normal(key, flat.shape, flat.dtype))

    def move(x, g, n, s=1.0):
        h = step_size.astype(x.dtype) * s
        return x + h * g + jnp.sqrt(2 * h) * n

    return jax.tree.map(move, position, gradient, noise, *(() if scale is None else (scale,)))
