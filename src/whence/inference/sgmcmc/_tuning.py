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
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...core._types import PRNGKey, Scalar
from ._preconditioner import AbstractPreconditioner, Curvature

Vector = Float[Array, " dim"]

BIAS = 0.05  # of a variance, in units of itself
FIRST, LATER = 20, 3  # power iterations at the first block of warm-up, and at each after it
FORGET = 0.95  # of the largest curvature per block: what was met on the way in need not last
SHARE = 0.03  # smallest weight of the newest noise
MOST_OF = 0.9  # of the coordinates count: the largest of many estimates is large by chance
REACH, DAMPING = 0.3, 0.2  # `h sqrt(L)` and `f / sqrt(L)` of underdamped dynamics
MOST, HEATED = 0.5, 0.1  # `h f`, and of it what a thermostat may add
LONGEST = 0.5  # `h L` overdamped where the descent starts


class Tuning(eqx.Module):
    """What is known of curvature and noise, in coordinates scaled by the preconditioner.

    Attributes:
        direction: Of the largest curvature, of length 1.
        curvature: The largest, forgotten slowly.
        noise: Variance of the gradient by coordinate, a running mean.
        along: The same along `direction`.
        count: Blocks seen since the descent, or the last one of it.
        square: Of the gradient's largest component, as last seen.
    """

    direction: Vector
    curvature: Scalar
    noise: Vector
    along: Scalar
    count: Int[Array, ""]
    square: Scalar

    @staticmethod
    def start(like: Vector, *, key: PRNGKey) -> "Tuning":
        """Return the state before anything is known."""
        direction = jr.normal(key, like.shape, like.dtype)
        zero = jnp.zeros((), like.dtype)
        size = jnp.linalg.norm(direction)
        count = jnp.zeros((), jnp.int32)
        return Tuning(direction / size, zero, jnp.zeros_like(like), zero, count, zero)

    def limit(self, gradient: Vector, root: Vector | float, momentum: Array) -> Scalar:
        """Return the factor that makes a gradient no larger than twice what is usual.

        Args:
            gradient: By a batch.
            root: Of the preconditioner's diagonal.
            momentum: When `square` was seen.
        """
        usual = self.square + self.curvature * (1 + jnp.max(momentum**2, initial=0))
        return jnp.minimum(1, 2 * jnp.sqrt(usual) / jnp.max(jnp.abs(root * gradient)))

    @property
    def variance(self) -> Scalar:
        """The variance of the gradient that counts."""
        place = round(MOST_OF * (self.noise.size - 1))
        return jnp.maximum(self.along, jnp.sort(self.noise)[place])


def look(
    tuning: Tuning,
    product: Callable[[Vector, Int[Array, ""]], tuple[Vector, Vector]],
    part: AbstractPreconditioner,
    scale: PyTree,
    iterations: Int[Array, ""] | int,
    descends: Bool[Array, ""] | bool = False,
    *,
    key: PRNGKey,
) -> tuple[Tuning, PyTree]:
    """Go on with the power iteration, each step with a batch of its own.

    Args:
        tuning: From before.
        product: Given a direction and a number, returns the gradient by the batch of that
            number and the product of its Hessian with the direction.
        part: The preconditioner.
        scale: Its state.
        iterations: At least 2, since noise is seen in differences.
        descends: Whether the chain is on its way in: it is then looked for units, too, and
            what was seen of noise before is forgotten.
        key: For random signs.

    Returns:
        The new tuning, and the new state of the preconditioner.
    """
    probes = jnp.where(descends, iterations, 0) if isinstance(part, Curvature) else 0

    def body(i, carry):
        direction, _, last, sums, scale = carry
        root = part.root(scale)
        scaled = lambda x: root * x
        vector = direction
        if isinstance(part, Curvature):
            signs = jr.rademacher(jr.fold_in(key, i), direction.shape, direction.dtype)
            vector = jnp.where(i < probes, signs, direction)
        gradient, turned = (scaled(x) for x in product(scaled(vector), i))
        change = gradient - last
        seen = change**2 / 2, (direction @ change) ** 2 / 2, jnp.max(gradient**2)
        sums = tuple(x + jnp.where(i > probes, y, 0) for x, y in zip(sums, seen, strict=True))
        if isinstance(part, Curvature):
            agreed = jnp.minimum(gradient * jnp.sign(last), jnp.abs(last))
            learned = part.turned(scale, turned, agreed)
            scale = jax.tree.map(lambda x, y: jnp.where(i < probes, x, y), learned, scale)
        norm = jnp.linalg.norm(turned)
        # Of batches that differ, `E|H v|^2 / v' E[H] v` says which steps are stable.
        size = jnp.maximum(jnp.abs(direction @ turned), norm / 4)
        size = norm**2 / jnp.where(size > 0, size, 1)
        follows = (i >= probes) & (norm > 0)
        direction = jnp.where(follows, turned / jnp.where(follows, norm, 1), direction)
        return direction, size, gradient, sums, scale

    zero, zeros = jnp.zeros_like(tuning.along), jnp.zeros_like(tuning.noise)
    begin = tuning.direction, zero, zeros, (zeros, zero, zero), scale
    found = jax.lax.fori_loop(0, iterations + probes, body, begin)
    direction, size, _, (noise, along, square), scale = found
    pairs = jnp.asarray(iterations - 1, noise.dtype)
    count = jnp.where(descends, 0, tuning.count) + 1
    share = jnp.maximum(1 / count.astype(noise.dtype), SHARE)
    mean = lambda old, new: old + share * (new / pairs - old)
    curvature = jnp.maximum(size, FORGET * tuning.curvature)
    noise, along = mean(tuning.noise, noise), mean(tuning.along, along)
    return Tuning(direction, curvature, noise, along, count, square / pairs), scale


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


def descending(
    tuning: Tuning,
    settled: tuple[Scalar, Scalar],
    friction: float | None,
    word: str,
    progress: Scalar,
) -> tuple[Scalar, Scalar]:
    """Return step size and friction on the way in.

    The noise of batches decides how long a step may be for a chain to stay in a well. Until it
    is there, one as long as the curvature of batches allows may be a thousand times faster; it
    falls geometrically to the one that stays.

    Args:
        tuning: What is known.
        settled: Step size and friction from `chosen`.
        friction: If it is given.
        word: Of the integrator.
        progress: From 0, where the chain starts, to 1.
    """
    root = jnp.sqrt(jnp.maximum(tuning.curvature, jnp.finfo(tuning.curvature.dtype).tiny))
    if word == "E":
        first, damped = LONGEST / root**2, jnp.ones_like(root)
    else:
        given = friction is None
        first, damped = REACH / root, DAMPING * root if given else jnp.full_like(root, friction)
    step_size, least = settled
    # Time passes as `h / f`, and never slower than in the end.
    slower = first / damped < step_size / least
    between = lambda x, y: jnp.where(slower, y, x ** (1 - progress) * y**progress)
    return between(first, step_size), between(damped, least)


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
