"""What processes that have data of their own tell each other, in the one program they run.

The program runs along the axis `"data"` of a mesh (`Schedule.sites`). Outside of it, where
shapes are looked at or a state is examined afterwards, there is nobody to ask.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def from_site(site: Int[Array, ""], tree: Any) -> Any:
    """Return in all processes what one of them has; outside of their program, what is here."""
    try:
        here = jax.lax.axis_index("data") == site
    except NameError:
        return tree
    return jax.tree.map(lambda x: jax.lax.psum(jnp.where(here, x, 0), "data"), tree)


def everywhere(ok: Bool[Array, ""]) -> Bool[Array, ""]:
    """Return whether this holds in all processes."""
    try:
        return jax.lax.pmin(ok.astype(jnp.int32), "data") > 0
    except NameError:
        return ok


def gather_sites(x: Array) -> Array:
    """Return, of what each process has along a leading axis of length 1, that of all."""
    try:
        return jax.lax.all_gather(x, "data", tiled=True)
    except NameError:
        return jnp.tile(x, (jax.process_count(), *[1] * (x.ndim - 1)))
