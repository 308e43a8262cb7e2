"""Logarithm and cosine of uniform variates, of additions and multiplications only.

On CPUs XLA's own cosine is a library call for every number, which takes longer than drawing
the uniform variate; in float64 its logarithm is slow as well.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# sin(2 pi sqrt(z)) / sqrt(z) on 0 <= z <= 1/16, lowest power first: interpolated at the
# Chebyshev nodes in 60 digits. Relative errors: 7e-9 and 3e-19.
_SINE = {
    "float32": (
        *(6.283185280154407, -41.34168061334652, 81.60247636892518),
        *(-76.58117264427872, 39.7598270853191),
    ),
    "float64": (
        *(6.283185307179586, -41.341702240399755, 81.60524927607362, -76.70585975282492),
        *(42.058693925428685, -15.0946416761179, 3.8199280942271643, -0.7177337921413454),
        0.10089695501646812,
    ),
}
# 2 atanh(sqrt(z)) / sqrt(z) = 2 + z times this, on 0 <= z <= ((sqrt 2 - 1) / (sqrt 2 + 1))^2:
# in the same way. Relative errors of the whole: 3e-9 and 5e-18.
_LOGARITHM = {
    "float32": (0.6666668503957586, 0.3998878056602198, 0.2957994939197279),
    "float64": (
        *(0.666666666666667, 0.39999999999899505, 0.28571428625975487, 0.2222221113479508),
        *(0.18182889125261723, 0.15331721600556042, 0.14616449685043406),
    ),
}
# Bits of the root of 1/2, and the number of bits after the exponent.
_LAYOUT = {
    "float32": (jnp.int32, 0x3F3504F3, 23),
    "float64": (jnp.int64, 0x3FE6A09E667F3BCD, 52),
}


def _polynomial(coefficients: tuple[float, ...], z: Array) -> Array:
    value = jnp.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * z + coefficient
    return value


def cosine_of_turns(turns: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `cos(2 pi turns)` to 3 units in the last place.

    Args:
        turns: Of type float32 or float64, from 0 to 1, and multiples of half the machine
            epsilon, as uniform variates are.
    """
    # The sine of the distance to the nearest of 1/4 and 3/4, which is exact.
    quarter = jnp.abs(turns - 0.5) - 0.25
    return quarter * _polynomial(_SINE[turns.dtype.name], quarter**2)


def logarithm(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `log(x)` to 2 units in the last place.

    Args:
        x: Of type float32 or float64, positive and finite, and not subnormal.
    """
    integer, half_root, digits = _LAYOUT[x.dtype.name]
    bits = jax.lax.bitcast_convert_type(x, integer)
    exponent = (bits - half_root) >> digits
    # x is 2^exponent times a number from sqrt(1/2) to sqrt(2).
    rest = jax.lax.bitcast_convert_type(bits - (exponent << digits), x.dtype) - 1
    s = rest / (rest + 2)
    square = s**2
    # log(1 + r) = 2 atanh(s) = r - s (r - s^2 P), and 2 s = r - r s.
    series = square * _polynomial(_LOGARITHM[x.dtype.name], square)
    return exponent.astype(x.dtype) * math.log(2) + (rest - s * (rest - series))
