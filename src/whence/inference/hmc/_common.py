"""What several Hamiltonian samplers need."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from ...core._engine import AbstractPausingEngine, never
from ...core._require import check_positions
from ...core._target import AbstractTarget
from ...core._types import Scalar

MAX_ENERGY_ERROR = 1000.0  # nats; a trajectory beyond diverges: Betancourt (2017), and Stan


class AbstractAdapted(AbstractPausingEngine):
    """A sampler of continuous positions that learns in pauses and makes all its steps."""

    def validate(self, target: AbstractTarget) -> None:
        check_positions(target, self.name)

    def done(self, state: PyTree) -> Bool[Array, ""]:
        return never()


def van_der_corput(index: Int[Array, ""], dtype: jnp.dtype) -> Scalar:
    """Return point `index` of the base-2 van der Corput sequence: mirrored bits, in (0, 1)."""
    bits = index.astype(jnp.uint32) + jnp.uint32(1)
    for width, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
        shift, even = jnp.uint32(width), jnp.uint32(mask)
        bits = ((bits >> shift) & even) | ((bits & even) << shift)
    bits = (bits >> jnp.uint32(16)) | (bits << jnp.uint32(16))
    return bits.astype(dtype) * jnp.asarray(2.0**-32, dtype)


def choose(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    """Return one of two pytrees."""
    return jax.tree.map(lambda y, n: jnp.where(condition, y, n), yes, no)


def restarted(log_step: Any) -> tuple:
    """Return the leaves of `DualAveraging` from a good step size on, anchored where it is."""
    zero = 0 * log_step
    return log_step, log_step, zero, log_step, zero
