"""Between a support and unconstrained space, by numpyro's bijections."""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints

from ..core._dtype import relaxed
from ..core._types import Scalar


def bijection(support: Any, argument: str) -> Any:
    """Return numpyro's bijection from unconstrained space to a support."""
    if not isinstance(support, constraints.Constraint):
        raise ValueError(
            f"{argument} must be a constraint of `numpyro.distributions.constraints`; got "
            f"{support!r}."
        )
    if support.is_discrete:
        raise ValueError(
            f"{argument} must be continuous; got {support!r}. Sum discrete variables out of "
            "the density."
        )
    try:
        return dist.biject_to(support)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"{argument} is {support!r}, for which numpyro has no bijection from "
            "unconstrained space."
        ) from error


@relaxed()
def log_det(bijector: Any, point: Array, value: Array) -> Scalar:
    """Return the log-determinant of the Jacobian at one point, summed over the batch."""
    return jnp.sum(jnp.asarray(bijector.log_abs_det_jacobian(point, value)))
