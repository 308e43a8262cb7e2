"""Student's t: draws without rejection, and quantiles in closed form."""

import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from ...core._types import PRNGKey
from ._polynomials import cosine_of_turns, logarithm


def noise_pair(
    key: PRNGKey, shape: tuple[int, ...], dtype
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return a radius and a coordinate: `-2 log U` and `cos(2 pi V)` of uniforms U and V.

    The square root of the first times the second is standard normal (Box and Muller 1958).
    """
    uniforms = jr.uniform(key, (2, *shape), jnp.promote_types(dtype, jnp.float32))
    # 1 - U is in (0, 1], where the logarithm is finite. It is exact, as U is a multiple of
    # the machine epsilon.
    radius = -2 * logarithm(1 - uniforms[0])
    return radius.astype(dtype), cosine_of_turns(uniforms[1]).astype(dtype)


def standard_normal(key: PRNGKey, shape: tuple[int, ...], dtype) -> Float[Array, "..."]:
    """Draw from the standard normal, from the same uniforms as `standard_t`."""
    radius, coordinate = noise_pair(key, shape, dtype)
    return jnp.sqrt(radius) * coordinate


def standard_t(key: PRNGKey, degrees: Float[Array, "..."], shape: tuple[int, ...]):
    """Draw from Student's t by the polar method, which needs no rejection.

    `T = sqrt(nu (U ** (-2 / nu) - 1)) cos(2 pi V)`. With nu to infinity it becomes the
    normal draw of Box and Muller from the same uniforms. The sine would give a second draw,
    but one that depends on the first.

    References:
        Bailey (1994), "Polar generation of random variates with the t-distribution",
        Mathematics of Computation 62, 779-781.
    """
    radius, coordinate = noise_pair(key, shape, degrees.dtype)
    return jnp.sqrt(degrees * jnp.expm1(radius / degrees)) * coordinate


def t_upper_quantile(tail: Float[Array, "..."], degrees: Float[Array, "..."]):
    """Return the point that Student's t exceeds with probability `tail`, below 1/2.

    An expansion in closed form. Its relative error is at most 2e-3 at 2 degrees of freedom,
    4e-5 at 2.5, 2e-6 from 3 on.

    References:
        Hill (1970), Algorithm 396: Student's t-quantiles, Communications of the ACM 13,
        619-620.
    """
    nu, both = degrees, 2 * tail
    a = 1 / (nu - 0.5)
    b = 48 / a**2
    c = ((20_700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * jnp.sqrt(a * jnp.pi / 2) * nu
    y = (d * both) ** (2 / nu)
    # Far in the tail: a series in y, which is small.
    series = (
        1 / (((nu + 6) / (nu * y) - 0.089 * d - 0.822) * (nu + 2) * 3) + 0.5 / (nu + 4)
    ) * y
    far = (series - 1) * (nu + 1) / (nu + 2) + 1 / y
    # Elsewhere: an expansion about the normal quantile.
    x = ndtri(tail)
    c = c + jnp.where(nu < 5, 0.3 * (nu - 4.5) * (x + 0.6), 0.0)
    c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
    z = (((((0.4 * x**2 + 6.3) * x**2 + 36) * x**2 + 94.5) / c - x**2 - 3) / b + 1) * x
    near = jnp.expm1(a * z**2)
    return jnp.sqrt(nu * jnp.where(y > 0.05 + a, near, far))
