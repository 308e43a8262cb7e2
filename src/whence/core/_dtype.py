"""Precision: float32 as JAX has it, float64 by one call."""

import jax


def enable_x64(enable: bool = True) -> None:
    """Use float64 from here on (or float32 again).

    Call it before making data and keys: arrays made earlier keep their type.

    Args:
        enable: Whether to use float64.
    """
    jax.config.update("jax_enable_x64", enable)
