"""Cholesky factors, with jitter where rounding needs it, and said so."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ....core._types import Scalar
from .._precision import is_single

# Relative to the mean of the diagonal. Beyond the last the model would be another one.
JITTERS = (0.0, 1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4)


def cholesky(covariance: Float[Array, "dim dim"]) -> tuple[Float[Array, "dim dim"], float]:
    """Return the lower factor and the jitter that it took, absolute."""
    typical = float(jnp.mean(jnp.diagonal(covariance)))
    for relative in (0.0,) if is_single(covariance.dtype) else JITTERS:
        jitter = relative * typical
        factor = jnp.linalg.cholesky(
            covariance if jitter == 0 else plus_diagonal(covariance, jnp.asarray(jitter))
        )
        if bool(is_definite(factor, covariance)):
            return factor, jitter
    # In single precision a jitter would have to be so large that it is seen in predictions.
    single = is_single(covariance.dtype)
    how = "" if single else f", even with a jitter of {JITTERS[-1]} times its mean diagonal"
    raise ValueError(
        f"`covariance` of the data must be positive definite; it is not{how}, in "
        f"{covariance.dtype}; that diagonal is {typical:.3g}. Drop rows of `x` that are equal, "
        "raise `noise`, or scale the inputs to a spread near 1"
        f"{', or use `whence.enable_x64()`' * single}."
    )


@jax.jit
def plus_diagonal(covariance: Float[Array, "dim dim"], added: Array) -> Array:
    """Return a matrix with more on its diagonal, in one pass over it."""
    identity = jnp.eye(len(covariance), dtype=covariance.dtype)
    return covariance + identity * added.astype(covariance.dtype)


def explain_factor(covariance: Float[Array, "dim dim"], noise: Array) -> str:
    """Say why a covariance has no factor without jitter; empty if it has one."""
    if not bool(jnp.all(jnp.isfinite(covariance))):
        return "The kernel overflows: scale the inputs, or use `whence.enable_x64()`."
    try:
        jitter = cholesky(covariance)[1]
    except ValueError as error:
        return str(error)
    if jitter == 0:
        return ""
    return (
        f"The covariance of the data is not positive definite with noise {float(noise):.3g}, a "
        f"multiple of the scale, in {covariance.dtype}; it would be with {jitter:.2g} more on "
        "its diagonal. Log densities add no jitter, which would make them jump: give "
        "`noise` a number or a prior that keeps it from zero, drop rows of `x` that are "
        "nearly equal, or use `whence.enable_x64()`."
    )


def _least_pivot(dtype) -> float:
    return 10 * float(jnp.finfo(dtype).eps)


def is_definite(factor: Array, covariance: Array) -> Array:
    """Whether rounding cannot have made any of the pivots; false where the factor is NaN."""
    # What is left of a variance after those before it; NaN compares false.
    left = jnp.diagonal(factor) ** 2
    return jnp.all(left > _least_pivot(covariance.dtype) * jnp.diagonal(covariance))


@jax.custom_jvp
def factor_or_penalty(
    covariance: Float[Array, "dim dim"],
) -> tuple[Float[Array, "dim dim"], Scalar]:
    """Return the lower factor and 0, or the identity and minus infinity.

    The second where the covariance is not positive definite. For log densities in compiled
    code: no jitter, which would make them jump, no NaN, and derivatives that are finite.
    """
    factor = jnp.linalg.cholesky(covariance)
    definite = is_definite(factor, covariance)
    eye = jnp.eye(len(covariance), dtype=covariance.dtype)
    penalty = jnp.where(definite, 0.0, -jnp.inf).astype(covariance.dtype)
    return jnp.where(definite, factor, eye), penalty


@factor_or_penalty.defjvp
def _factor_or_penalty_jvp(primals, tangents):
    # dL = L P(L^-1 dA L^-T), with P the lower triangle, its diagonal halved.
    (covariance,), (change,) = primals, tangents
    factor, penalty = factor_or_penalty(covariance)
    half = solve_triangular(factor, change, lower=True)
    white = solve_triangular(factor, half.T, lower=True)
    lower = jnp.tril(white) - jnp.diag(jnp.diagonal(white)) / 2
    slope = jnp.where(penalty < 0, 0.0, factor @ lower)
    return (factor, penalty), (slope, jnp.zeros_like(penalty))


def whitened_covariance(
    covariance: Float[Array, "dim dim"], noise: Array, before: Float[Array, " dim"]
) -> Float[Array, "dim dim"]:
    """Return a factor of a predictive covariance, which may be singular.

    At inputs that were observed without noise nothing is uncertain, and what is left of the
    covariance is rounding of either sign; so of the variance before, rounding is added.
    """
    dtype = covariance.dtype
    rounding = 10 * len(before) * jnp.finfo(dtype).eps * jnp.max(before)
    added = noise.astype(dtype) + rounding
    return jnp.linalg.cholesky(covariance + added * jnp.eye(len(before), dtype=dtype))
