"""What ChEES and MCLMC have in common."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from ...core._types import Scalar

MAX_ENERGY_ERROR = 1000.0  # nats; Stan's limit for a diverging trajectory


def van_der_corput(index: Int[Array, ""], dtype: jnp.dtype) -> Scalar:
    """Return point `index` of the base-2 van der Corput sequence: mirrored bits, in (0, 1)."""
    bits = index.astype(jnp.uint32) + jnp.uint32(1)
    for width, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
        shift, even = jnp.uint32(width), jnp.uint32(mask)
        bits = ((bits >> shift) & even) | ((bits & even) << shift)
    bits = (bits >> jnp.uint32(16)) | (bits << jnp.uint32(16))
    return bits.astype(dtype) * jnp.asarray(2.0**-32, dtype)


def restarted(log_step: Any) -> tuple:
    """Return the leaves of `DualAveraging` from a good step size on, anchored where it is."""
    zero = 0 * log_step
    return log_step, log_step, zero, log_step, zero
