"""What ChEES and MCLMC have in common."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int

from ...core._target import AbstractTarget
from ...core._types import Position, Scalar
from ._step_size import DualAveraging

START_TRIES = 100
MAX_ENERGY_ERROR = 1000.0  # nats; Stan's limit for a diverging trajectory


def require_floating_latents(target: AbstractTarget) -> None:
    """Raise `ValueError` if the target has no position of floating-point numbers."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: target.init(key=jr.key(0))))
    if sum(leaf.size for leaf in leaves) == 0:
        raise ValueError("`target` must have at least one latent variable; it has none.")
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"`target` must have floating positions; got {leaf.dtype}.")


def example_position(target: AbstractTarget) -> Position:
    """Return a position of zeros, without drawing one."""
    shapes = jax.eval_shape(lambda: target.init(key=jr.key(0)))
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def van_der_corput(index: Int[Array, ""], dtype: jnp.dtype) -> Scalar:
    """Return point `index` of the base-2 van der Corput sequence: mirrored bits, in (0, 1)."""
    bits = index.astype(jnp.uint32) + jnp.uint32(1)
    for width, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
        shift, even = jnp.uint32(width), jnp.uint32(mask)
        bits = ((bits >> shift) & even) | ((bits & even) << shift)
    bits = (bits >> jnp.uint32(16)) | (bits << jnp.uint32(16))
    return bits.astype(dtype) * jnp.asarray(2.0**-32, dtype)


def restarted(log_step: Scalar) -> DualAveraging:
    """Start dual averaging at a step size that is good already, anchored where it is."""
    zero = jnp.zeros_like(log_step)
    return DualAveraging(log_step, log_step, zero, log_step, zero)
