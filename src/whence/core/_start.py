"""The search for a point to start from: random ones are tried until one is finite.

An engine that searches inside another loop, so that its program holds one copy of the
gradient, has a loop of its own and shares `MAX_STARTS`. One that finds none ends with
`RESULTS.nonfinite_start`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, PyTree

from ._types import PRNGKey

MAX_STARTS = 100  # initial points to try before giving up


def find_start(
    attempt: Callable[[PRNGKey], tuple[PyTree, Bool[Array, ""]]], like: PyTree, *, key: PRNGKey
) -> tuple[PyTree, Bool[Array, ""]]:
    """Return the first finite start among `MAX_STARTS`, or the last one. Traced.

    Args:
        attempt: Given a key, returns a random start, in any form, and whether it is finite.
        like: A start of any value.
        key: Each attempt has a key of its own from it.

    Returns:
        The start, and whether it is finite.
    """

    def body(carry):
        tries, _, _ = carry
        return tries + 1, *attempt(jr.fold_in(key, tries))

    def is_missing(carry):
        tries, _, is_finite = carry
        return ~is_finite & (tries < MAX_STARTS)

    # The loop makes the first attempt too: one copy of the density to compile.
    first = jnp.zeros((), jnp.int32), like, jnp.asarray(False)
    _, start, is_finite = jax.lax.while_loop(is_missing, body, first)
    return start, is_finite
