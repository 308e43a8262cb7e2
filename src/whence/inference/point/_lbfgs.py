"""Limited-memory BFGS with a line search that asks for no more than finite numbers.

Minimises; a value or gradient that is not finite counts as a value too high.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...core._types import Scalar

Function = Callable[[Array], tuple[Array, Array]]  # value and gradient at a point

# Sufficient decrease and curvature, as Nocedal and Wright (2006), page 62, have them for
# quasi-Newton methods.
DECREASE, CURVATURE = 1e-4, 0.9
MAX_EVALUATIONS = 60  # of one line search: doubles or halves a step by as many powers of 2


class Memory(eqx.Module):
    """The last steps and changes of the gradient, newest last; zero where there are none.

    References:
        Nocedal, Wright (2006), Numerical Optimization, algorithm 7.4.
    """

    steps: Float[Array, "memory dim"]
    changes: Float[Array, "memory dim"]
    inverses: Float[Array, " memory"]  # 1 / (step . change)

    @staticmethod
    def empty(size: int, point: Float[Array, " dim"]) -> "Memory":
        """Return a memory of nothing."""
        none = jnp.zeros((size, *point.shape), point.dtype)
        return Memory(none, none, jnp.zeros((size,), point.dtype))

    def with_step(self, step: Float[Array, " dim"], change: Float[Array, " dim"]) -> "Memory":
        """Return the memory with one step more, unless its curvature is not positive."""
        product = step @ change
        eps = jnp.finfo(step.dtype).eps
        usable = product > eps * jnp.linalg.norm(step) * jnp.linalg.norm(change)
        inverse = 1 / jnp.where(usable, product, 1)
        new = Memory(
            _pushed(self.steps, step),
            _pushed(self.changes, change),
            _pushed(self.inverses, inverse),
        )
        return jax.tree.map(lambda a, b: jnp.where(usable, a, b), new, self)

    def direction(self, gradient: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return minus the approximate inverse Hessian times the gradient.

        Without a step to go by it is the direction of steepest descent, of length 1 at most.
        """

        def backward(rest, pair):
            step, change, inverse = pair
            share = inverse * (step @ rest)
            return rest - share * change, share

        def forward(rest, pair):
            step, change, inverse, share = pair
            return rest + step * (share - inverse * (change @ rest)), None

        pairs = self.steps, self.changes, self.inverses
        rest, shares = jax.lax.scan(backward, gradient, pairs, reverse=True)
        newest = self.changes[-1]
        known = self.inverses[-1] > 0
        length = jnp.linalg.norm(gradient)
        first = 1 / jnp.where(length > 1, length, 1)
        curvature = self.inverses[-1] * (newest @ newest)
        rest = rest * jnp.where(known, 1 / jnp.where(known, curvature, 1), first)
        return -jax.lax.scan(forward, rest, (*pairs, shares))[0]


def _pushed(old: Array, new: Array) -> Array:
    return jnp.concatenate([old[1:], new[None]])


class Search(NamedTuple):
    """Where a line search ended."""

    length: Scalar  # of the step, in units of the direction; 0 if no step was good
    value: Scalar  # there
    gradient: Float[Array, " dim"]  # there
    at_wall: Bool[Array, ""]  # whether the value fell right up to where it is no longer finite
    evaluations: Int[Array, ""]  # of the function


def search(
    function: Function,
    point: Float[Array, " dim"],
    value: Scalar,
    gradient: Float[Array, " dim"],
    direction: Float[Array, " dim"],
) -> Search:
    """Find a step with the weak Wolfe conditions, by doubling and bisection.

    A value that is not finite is given for a point that has not been looked at: then the
    search is of length 0 and returns value and gradient at the point itself.

    References:
        Lewis, Overton (2013), Nonsmooth optimization via quasi-Newton methods,
        doi:10.1007/s10107-012-0514-2, algorithm 4.6.
    """
    slope = gradient @ direction
    unseen = ~jnp.isfinite(value)
    # Near the minimum the decrease is less than the rounding of the value itself.
    slack = 4 * jnp.finfo(point.dtype).eps * jnp.abs(value)
    dtype = point.dtype

    def unfinished(carry):
        _, _, _, _, accepted, _, evaluations = carry
        return ~accepted & (evaluations < MAX_EVALUATIONS)

    def bisect(carry):
        length, low, high, best, _, wall, evaluations = carry
        new, new_gradient = function(point + length * direction)
        finite = jnp.isfinite(new) & jnp.all(jnp.isfinite(new_gradient))
        falls = finite & (unseen | (new <= value + DECREASE * length * slope + slack))
        flat = unseen | (new_gradient @ direction >= CURVATURE * slope)
        low = jnp.where(falls, length, low)
        high = jnp.where(falls, high, length)
        best = jax.tree.map(lambda a, b: jnp.where(falls, a, b), (new, new_gradient), best)
        wall = jnp.where(falls, wall, ~finite)
        bounded = jnp.isfinite(high)
        middle = jnp.where(bounded, (low + jnp.where(bounded, high, 0)) / 2, 2 * low)
        return middle, low, high, best, falls & flat, wall, evaluations + 1

    one, zero = jnp.ones((), dtype), jnp.zeros((), dtype)
    carry: Any = (one, zero, jnp.full((), jnp.inf, dtype), (value, gradient))
    carry = (*carry, jnp.asarray(False), jnp.asarray(False), jnp.zeros((), jnp.int32))
    _, low, _, (value, gradient), accepted, wall, count = jax.lax.while_loop(
        unfinished, bisect, carry
    )
    return Search(low, value, gradient, wall & ~accepted & (low > 0), count)
