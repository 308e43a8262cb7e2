"""Names for the things every room speaks of, and the names of array axes.

Axes: ``chain``, ``draw``, ``particle``, ``time``, ``data``, ``feature``, ``dim``.
"""

from typing import Any

from jaxtyping import Array, Float, Key, PyTree

Position = PyTree  # a point in unconstrained space
Draw = Any  # what `Target.constrain` returns: a `Model` with values, or any pytree
Scalar = Float[Array, ""]
PRNGKey = Key[Array, ""]
