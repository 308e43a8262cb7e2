"""What a function's value depends on, by the structure of its program."""

from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr

from ...core._dtype import relaxed


def depends(function: Callable, *arguments: Any) -> list[bool]:
    """Return for each argument whether the value of the function depends on it.

    By the structure of its program: an affine function written as another counts as another.

    Args:
        function: Traced.
        *arguments: Arrays, or their shapes and types; of a pytree there is an entry for each
            leaf.
    """
    with relaxed():
        jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
