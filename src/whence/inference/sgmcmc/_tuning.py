"""A step size from what limits it: the largest curvature, and the noise of the gradient.

In coordinates scaled by the preconditioner let `L` be the largest curvature and `V` the
largest variance of the gradient estimate. In a direction of precision `a`, overdamped
dynamics have the stationary variance `(1 + h V / 2) / (1 - h a / 2) / a`; underdamped ones with
friction `f` are wrong by about `h V / (2 f) + O(h^2 a)`, if batches are independent. Reshuffled
batches add up to nothing over the `m` updates of an epoch: their sum is a bridge, of variance
`m h^2 V / 6` in the mean over an epoch, which is what positions (overdamped; as a share of the
variance, times `a`) or momenta get of it. The step size found keeps what it can of these at 5%.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from ...core._types import PRNGKey, Scalar

Vector = Float[Array, " dim"]

BIAS = 0.05  # of a variance, in units of itself
FIRST, LATER = 20, 3  # power iterations at the first block of warm-up, and at each after it
FORGET = 0.95  # of the largest curvature per block: what was met on the way in need not last
SHARE = 0.1  # smallest weight of the newest noise
MOST_OF = 0.9  # of the coordinates count: the largest of many estimates is large by chance
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
        """The variance of the gradient that counts."""
        place = round(MOST_OF * (self.noise.size - 1))
        return jnp.maximum(self.along, jnp.sort(self.noise)[place])


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


def chosen(
    tuning: Tuning, friction: float | None, word: str, epoch: int
) -> tuple[Scalar, Scalar]:
    """Return step size and friction.

    Args:
        tuning: What is known.
        friction: If it is given.
        word: Of the integrator.
        epoch: Batches whose noise adds up to nothing; 0 if they are independent.
    """
    tiny = jnp.finfo(tuning.curvature.dtype).tiny
    curvature = jnp.maximum(tuning.curvature, tiny)
    variance, larger = jnp.maximum(tuning.variance, tiny), jnp.maximum
    bridge = jnp.sqrt(6 * BIAS / (epoch * variance)) if epoch else jnp.zeros_like(variance)
    if word == "E":
        independent = 2 * BIAS / (curvature + variance)
        reshuffled = jnp.minimum(2 * BIAS / curvature, bridge / jnp.sqrt(curvature))
        return larger(independent, reshuffled), jnp.ones_like(curvature)
    step_size, least = REACH / jnp.sqrt(curvature), DAMPING * jnp.sqrt(curvature)
    reshuffled = jnp.minimum(step_size, bridge)
    given = least if friction is None else jnp.full_like(curvature, friction)
    if "D" in word:
        # The thermostat adds the friction that the noise asks for, `h V / 2`.
        step_size = jnp.minimum(step_size, jnp.sqrt(2 * HEATED / variance))
    elif friction is not None:
        step_size = larger(jnp.minimum(step_size, 2 * BIAS * given / variance), reshuffled)
    else:
        step_size = jnp.minimum(step_size, jnp.sqrt(2 * BIAS * MOST / variance))
        damped = larger(least, step_size * variance / (2 * BIAS))
        # Time passes as `h / f` where friction rules: the faster of the two is taken.
        faster = reshuffled / least > step_size / damped
        step_size = jnp.where(faster, reshuffled, step_size)
        given = jnp.where(faster, least, damped)
    return jnp.minimum(step_size, MOST / given), given


def inflation_by_noise(step_size, friction, variance, curvature, word: str, epoch: int):
    """Return by how much of itself the noise of batches makes a variance larger.

    Args:
        step_size: `h`.
        friction: `f`; 1 without momentum.
        variance: `V`.
        curvature: `L`.
        word: Of the integrator.
        epoch: As in `chosen`.
    """
    independent = step_size * variance / (2 * friction)
    share = step_size**2 * variance * epoch / 6 * (curvature if word == "E" else 1.0)
    return np.minimum(independent, share) if epoch else independent


def largest_stable(curvature, *, overdamped: bool):
    """Return the step size above which an update is unstable, given the largest curvature."""
    return 2 / curvature if overdamped else 2 / curvature**0.5
