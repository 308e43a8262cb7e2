"""Precision: float32 as JAX has it, float64 by one call; types that libraries may mix."""

import contextlib
from collections.abc import Iterator

import jax


def enable_x64(enable: bool = True) -> None:
    """Use float64 from here on (or float32 again).

    Call it before making data and keys: arrays made earlier keep their type.

    Args:
        enable: Whether to use float64.
    """
    jax.config.update("jax_enable_x64", enable)


@contextlib.contextmanager
def relaxed() -> Iterator[None]:
    """Let a library mix types and ranks, whatever `jax_numpy_dtype_promotion` says.

    Around calls of libraries that strict promotion would make fail; never around our own
    arithmetic.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
