"""Cholesky factors, with jitter where rounding needs it, and said so."""

import jax.numpy as jnp
from jaxtyping import Array, Float

# Relative to the mean of the diagonal. Beyond the last the model would be another one.
JITTERS = (0.0, 1e-14, 1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)


def cholesky(covariance: Float[Array, "dim dim"]) -> tuple[Float[Array, "dim dim"], float]:
    """Return the lower factor and the jitter that it took, absolute.

    Args:
        covariance: Symmetric.

    Raises:
        ValueError: If it is not positive definite with any of the jitters.
    """
    typical = float(jnp.mean(jnp.diagonal(covariance)))
    smallest = 10 * float(jnp.finfo(covariance.dtype).eps)
    for relative in JITTERS:
        if 0 < relative < smallest:
            continue
        jitter = relative * typical
        factor = jnp.linalg.cholesky(
            covariance + jitter * jnp.eye(len(covariance)).astype(covariance.dtype)
        )
        # What is left of a variance after those before it; NaN compares false.
        left = jnp.diagonal(factor) ** 2
        if bool(jnp.all(left > smallest * jnp.diagonal(covariance))):
            return factor, jitter
    raise ValueError(
        "`covariance` of the data must be positive definite; it is not, even with a jitter of "
        f"{JITTERS[-1]} times its mean diagonal, {typical:.3g}, in {covariance.dtype}. Drop "
        "rows of `x` that are equal, raise `noise`, or use float64."
    )


def whitened_covariance(
    covariance: Float[Array, "dim dim"], noise: Array, before: Float[Array, " dim"]
) -> Float[Array, "dim dim"]:
    """Return a factor of a predictive covariance, which may be singular.

    At inputs that were observed without noise nothing is uncertain, and what is left of the
    covariance is rounding of either sign; so of the variance before, rounding is added.

    Args:
        covariance: Of the function given observations.
        noise: Added to the diagonal.
        before: Variances before the observations.
    """
    dtype = covariance.dtype
    rounding = 10 * len(before) * jnp.finfo(dtype).eps * jnp.max(before)
    added = noise.astype(dtype) + rounding
    return jnp.linalg.cholesky(covariance + added * jnp.eye(len(before), dtype=dtype))
