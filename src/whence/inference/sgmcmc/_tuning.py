"""A step size from what limits it: the largest curvature, and the noise of the gradient.

In coordinates scaled by the preconditioner let `L` be the largest curvature and `V` the
largest variance of the gradient estimate. In a direction of precision `a`, overdamped
dynamics have the stationary variance `(1 + h V / 2) / (1 - h a / 2) / a`; underdamped ones with
friction `f` are wrong by about `h V / (2 f) + O(h^2 a)`. So with `h = 0.1 / (L + V)`, or
with `h^2 L <= 0.09` and `h V <= 0.1 f`, the variance is right to about 5%, were batches
independent; reshuffled ones do better.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from ...core._types import PRNGKey, Scalar

Vector = Float[Array, " dim"]

BIAS = 0.05  # of a variance, in units of itself
FIRST, LATER = 20, 3  # power iterations at the first block of warm-up, and at each after it
FORGET = 0.95  # of the largest curvature per block: what was met on the way in need not last
SHARE = 0.02  # smallest weight of the newest noise
REACH, DAMPING = 0.3, 0.2  # `h sqrt(L)` and `f / sqrt(L)` of underdamped dynamics
MOST, HEATED = 0.5, 0.1  # `h f`, and of it what a thermostat may add


class Tuning(eqx.Module):
    """What is known of curvature and noise, in coordinates scaled by the preconditioner.

    Attributes:
        direction: Of the largest curvature, of length 1.
        curvature: The largest, forgotten slowly.
        noise: Variance of the gradient by coordinate, a running mean.
        along: The same along `direction`.
        count: Blocks seen.
    """

    direction: Vector
    curvature: Scalar
    noise: Vector
    along: Scalar
    count: Int[Array, ""]

    @staticmethod
    def start(like: Vector, *, key: PRNGKey) -> "Tuning":
        """Return the state before anything is known."""
        direction = jr.normal(key, like.shape, like.dtype)
        zero = jnp.zeros((), like.dtype)
        size = jnp.linalg.norm(direction)
        return Tuning(
            direction / size, zero, jnp.zeros_like(like), zero, jnp.zeros((), jnp.int32)
        )

    @property
    def variance(self) -> Scalar:
        """The largest variance of the gradient that is known of."""
        return jnp.maximum(self.along, jnp.max(self.noise))


def look(
    tuning: Tuning,
    product: Callable[[Vector, Int[Array, ""]], tuple[Vector, Vector]],
    root: Vector | None,
    iterations: Int[Array, ""] | int,
) -> Tuning:
    """Go on with the power iteration, each step with a batch of its own.

    Args:
        tuning: From before.
        product: Given a direction and a number, returns the gradient by the batch of that
            number and the product of its Hessian with the direction.
        root: Square roots of the preconditioner's diagonal; None for ones.
        iterations: At least 2, since noise is seen in differences.
    """
    scaled = (lambda x: x) if root is None else (lambda x: root * x)

    def body(i, carry):
        direction, _, last, noise, along = carry
        gradient, turned = product(scaled(direction), i)
        gradient, turned = scaled(gradient), scaled(turned)
        half = jnp.where(i > 0, (gradient - last) ** 2 / 2, 0)
        rayleigh = jnp.where(i > 0, (direction @ (gradient - last)) ** 2 / 2, 0)
        size = jnp.linalg.norm(turned)
        direction = jnp.where(size > 0, turned / jnp.where(size > 0, size, 1), direction)
        return direction, size, gradient, noise + half, along + rayleigh

    zero, zeros = jnp.zeros_like(tuning.along), jnp.zeros_like(tuning.noise)
    begin = tuning.direction, zero, zeros, zeros, zero
    direction, size, _, noise, along = jax.lax.fori_loop(0, iterations, body, begin)
    pairs = jnp.asarray(iterations - 1, noise.dtype)
    count = tuning.count + 1
    share = jnp.maximum(1 / count.astype(noise.dtype), SHARE)
    mean = lambda old, new: old + share * (new / pairs - old)
    curvature = jnp.maximum(size, FORGET * tuning.curvature)
    return Tuning(
        direction, curvature, mean(tuning.noise, noise), mean(tuning.along, along), count
    )


def chosen(tuning: Tuning, friction: float | None, word: str) -> tuple[Scalar, Scalar]:
    """Return step size and friction.

    Args:
        tuning: What is known.
        friction: If it is given.
        word: Of the integrator.
    """
    tiny = jnp.finfo(tuning.curvature.dtype).tiny
    curvature = jnp.maximum(tuning.curvature, tiny)
    variance = jnp.maximum(tuning.variance, tiny)
    if word == "E":
        return 2 * BIAS / (curvature + variance), jnp.ones_like(curvature)
    step_size, least = REACH / jnp.sqrt(curvature), DAMPING * jnp.sqrt(curvature)
    if "D" in word:
        # The thermostat adds the friction that the noise asks for, `h V / 2`.
        step_size = jnp.minimum(step_size, jnp.sqrt(2 * HEATED / variance))
    elif friction is None:
        step_size = jnp.minimum(step_size, jnp.sqrt(2 * BIAS * MOST / variance))
        least = jnp.maximum(least, step_size * variance / (2 * BIAS))
    else:
        step_size = jnp.minimum(step_size, 2 * BIAS * friction / variance)
    if friction is None:
        return step_size, least
    return jnp.minimum(step_size, MOST / friction), jnp.full_like(curvature, friction)


def largest_stable(curvature, *, overdamped: bool):
    """Return the step size above which an update is unstable, given the largest curvature."""
    return 2 / curvature if overdamped else 2 / curvature**0.5
