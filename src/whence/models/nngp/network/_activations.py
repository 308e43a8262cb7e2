"""Activations: their kernel maps in closed form, or by Gauss-Hermite quadrature.

With (u, w) Gaussian of mean zero, variances q1 and q2 and covariance c, an activation f
gives k = E f(u) f(w) and kdot = E f'(u) f'(w), which is dk/dc (Price's theorem).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ....core._convert import number, positive, whole
from ._abstract_activation import AbstractActivation
from ._arc_cosine import apart, arc_cosine, arcsine_angle, safe_sqrt


class LeakyReLU(AbstractActivation):
    """`max(x, 0) + slope * min(x, 0)`.

    References:
        Cho, Saul (2009), Kernel methods for deep learning, Advances in Neural Information
        Processing Systems 22, equations 3 to 6: the arc-cosine kernel of degree 1.
    """

    slope: float = eqx.field(static=True, default=0.01, converter=number("slope"))

    def __call__(self, x: Array) -> Array:
        return jnp.where(x > 0, x, self.slope * x)

    def pair(self, q1: Array, q2: Array, c: Array) -> tuple[Array, Array]:
        bend, line = (1 - self.slope) ** 2 / (2 * np.pi), (1 + self.slope**2) / 2
        excess, angle = arc_cosine(q1, q2, c)
        return bend * excess + line * c, line - bend * angle

    def single(self, q: Array) -> tuple[Array, Array]:
        line = (1 + self.slope**2) / 2
        return line * q, jnp.full_like(q, line)


def ReLU() -> LeakyReLU:  # noqa: N802, a layer like the others to its user
    """Return `max(x, 0)`, the leaky one with slope 0."""
    return LeakyReLU(0.0)


class Erf(AbstractActivation):
    """`erf(x)`.

    References:
        Williams (1996), Computing with infinite networks, Advances in Neural Information
        Processing Systems 9, equation 10.
    """

    def __call__(self, x: Array) -> Array:
        return jax.scipy.special.erf(x)

    def pair(self, q1: Array, q2: Array, c: Array) -> tuple[Array, Array]:
        product = q1 * q2
        # (1 + 2 q1) (1 + 2 q2) - 4 c^2, of which the last difference may be lost.
        root = jnp.sqrt(1 + 2 * (q1 + q2) + 4 * apart(product - c**2, product))
        return 2 / np.pi * arcsine_angle(2 * c, root), 4 / (np.pi * root)

    def single(self, q: Array) -> tuple[Array, Array]:
        root = jnp.sqrt(1 + 4 * q)
        return 2 / np.pi * arcsine_angle(2 * q, root), 4 / (np.pi * root)


class GELU(AbstractActivation):
    """`x Phi(x)`, the exact form, with Phi the normal distribution function."""

    def __call__(self, x: Array) -> Array:
        return x * jax.scipy.special.ndtr(x)

    def pair(self, q1: Array, q2: Array, c: Array) -> tuple[Array, Array]:
        plain, shifted = q1 * q2, (1 + q1) * (1 + q2)
        gap = 1 + q1 + q2 + apart(plain - c**2, plain)  # shifted - c^2
        return self._value(plain, shifted, gap, c)

    def single(self, q: Array) -> tuple[Array, Array]:
        return self._value(q**2, (1 + q) ** 2, 1 + 2 * q, q)

    def _value(self, plain, shifted, gap, c):
        root = jnp.sqrt(gap)
        angle = arcsine_angle(c, root)
        k = c / 4 + (c * angle + (c**2 + plain * gap) / (shifted * root)) / (2 * np.pi)
        slope = (1 / gap + (1 - plain) / shifted + 1) * c / (2 * np.pi * root)
        return k, 0.25 + angle / (2 * np.pi) + slope


class Sin(AbstractActivation):
    """`sin(frequency * x)`."""

    frequency: float = eqx.field(static=True, default=1.0, converter=number("frequency"))

    def __call__(self, x: Array) -> Array:
        return jnp.sin(self.frequency * x)

    def pair(self, q1: Array, q2: Array, c: Array) -> tuple[Array, Array]:
        square = self.frequency**2
        # Two exponents of at most 0: exp times sinh would overflow.
        difference = jnp.exp(-square * apart(q1 + q2 - 2 * c, q1 + q2) / 2)
        total = jnp.exp(-square * (q1 + q2 + 2 * c) / 2)
        return (difference - total) / 2, square * (difference + total) / 2

    def single(self, q: Array) -> tuple[Array, Array]:
        square = self.frequency**2
        total = jnp.exp(-2 * square * q)
        return -jnp.expm1(-2 * square * q) / 2, square * (1 + total) / 2


class Rbf(AbstractActivation):
    """`sqrt(2) sin(sqrt(2 rate) x + pi/4)`: the kernel is `exp(-rate E(u - w)^2)`."""

    rate: float = eqx.field(static=True, default=1.0, converter=positive("rate"))

    def __call__(self, x: Array) -> Array:
        return math.sqrt(2) * jnp.sin(math.sqrt(2 * self.rate) * x + math.pi / 4)

    def pair(self, q1: Array, q2: Array, c: Array) -> tuple[Array, Array]:
        k = jnp.exp(-self.rate * apart(q1 + q2 - 2 * c, q1 + q2))
        return k, 2 * self.rate * k

    def single(self, q: Array) -> tuple[Array, Array]:
        return jnp.ones_like(q), jnp.full_like(q, 2 * self.rate)


def _function(value: Any) -> Any:
    if not callable(value):
        raise ValueError(f"`function` must be a function of an array; got {value!r}.")
    return value


class Activation(AbstractActivation):
    """Any function of one number, its kernel by Gauss-Hermite quadrature.

    The cost is `num_nodes**2` values of the function for each entry of the matrix. Larger
    variances need more nodes: erf is right to 8, 5 and 2 digits at variances 1, 2 and 8 with
    32 nodes, to 15, 10 and 3 with 64. A kink leaves two or three digits: take a closed form
    there. kdot is E f'(u) f'(w) with f' by automatic differentiation, finite where inputs
    coincide; jumps of f are not seen by it.
    """

    function: Callable[[Array], Array] = eqx.field(static=True, converter=_function)
    num_nodes: int = eqx.field(static=True, default=32, converter=whole("num_nodes", least=1))

    def __call__(self, x: Array) -> Array:
        return self.function(x)

    def pair(self, q1: Array, q2: Array, c: Array) -> tuple[Array, Array]:
        nodes, weights = self._rule(c.dtype)
        root1, root2 = safe_sqrt(q1), safe_sqrt(q2)
        product = root1 * root2
        r = jnp.clip(c / jnp.where(product > 0, product, 1), -1, 1)
        # At c^2 = q1 q2 the derivative of the root is taken as 0. That is the right one
        # along any smooth path of inputs: there the argument has a minimum, zero.
        rest = safe_sqrt(1 - r**2)

        @jax.checkpoint
        def add(total, rule):
            z1, z2, weight = rule
            f1, d1 = self._both(root1 * z1)
            f2, d2 = self._both(root2 * (r * z1 + rest * z2))
            return (total[0] + weight * f1 * f2, total[1] + weight * d1 * d2), None

        z1, z2 = (x.ravel() for x in jnp.meshgrid(nodes, nodes))
        zero = jnp.zeros_like(c)
        total, _ = jax.lax.scan(
            add, (zero, zero), (z1, z2, jnp.outer(weights, weights).ravel())
        )
        return total

    def single(self, q: Array) -> tuple[Array, Array]:
        nodes, weights = self._rule(q.dtype)
        value, slope = self._both(safe_sqrt(q)[..., None] * nodes)
        return value**2 @ weights, slope**2 @ weights

    def _rule(self, dtype):
        nodes, weights = np.polynomial.hermite_e.hermegauss(self.num_nodes)
        return jnp.asarray(nodes, dtype), jnp.asarray(weights / weights.sum(), dtype)

    def _both(self, x: Array) -> tuple[Array, Array]:
        return jax.jvp(self.function, (x,), (jnp.ones_like(x),))
