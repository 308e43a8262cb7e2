"""Types that all packages use, and the names of array axes.

Axes: ``chain``, ``draw``, ``particle``, ``time``, ``data``, ``feature``, ``dim``.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Key, PyTree

Position = PyTree  # a point in unconstrained space
Draw = Any  # what `Target.constrain` returns: a `Model` with values, or any pytree
AnyArray = Array | np.ndarray  # on the device, or on the host after a run
Scalar = Float[Array, ""]
PRNGKey = Key[Array, ""]
