"""`K + r I` for many r at once, by one eigendecomposition of K."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Spectrum(eqx.Module):
    """Eigenvalues and eigenvectors of a kernel matrix, constants to differentiation."""

    # ascending; what is zero up to rounding, or less, is set to rounding
    values: Float[Array, " rows"]
    vectors: Float[Array, "rows rows"]  # in columns


def spectrum(kernel: Float[Array, "rows rows"]) -> Spectrum:
    """Return the spectrum of a kernel matrix."""
    values, vectors = jnp.linalg.eigh(kernel)
    rounding = len(values) * jnp.finfo(values.dtype).eps * jnp.max(values)
    return Spectrum(jnp.maximum(values, rounding), vectors)


@jax.custom_jvp
def statistics(
    kernel: Float[Array, "rows rows"],
    y: Float[Array, "rows outputs"],
    log_ratios: Float[Array, " node"],
    known: Spectrum,
) -> tuple[Float[Array, " node"], Float[Array, " node"]]:
    """Return `tr(y' A^-1 y)` and `log det A` for `A = K + r I` and several r.

    First derivatives by K are those of these two, not of eigenvectors, which have none
    where eigenvalues coincide: they are right for any spectrum. Second derivatives go
    through eigenvectors, and are NaN where two eigenvalues are equal.
    """
    del kernel
    squares = jnp.sum((known.vectors.T @ y) ** 2, axis=1)
    values = known.values + jnp.exp(log_ratios)[:, None]
    return jnp.sum(squares / values, axis=1), jnp.sum(jnp.log(values), axis=1)


@statistics.defjvp
def _statistics_jvp(primals, tangents):
    kernel, y, log_ratios, _ = primals
    kernel_dot, y_dot, log_dot, _ = tangents
    known = spectrum(kernel)  # again: second derivatives must see where it comes from
    vectors, ratios = known.vectors, jnp.exp(log_ratios)
    values = known.values + ratios[:, None]
    change = vectors.T @ kernel_dot @ vectors
    weights = (vectors.T @ y) / values[:, :, None]  # V' A^-1 y, for each node
    ratios_dot = ratios * log_dot
    moved = jnp.einsum("kic,ij,kjc->k", weights, change, weights)
    moved = moved + ratios_dot * jnp.sum(weights**2, axis=(1, 2))
    pulled = 2 * jnp.einsum("kic,ic->k", weights, vectors.T @ y_dot)
    log_det_dot = jnp.sum((jnp.diagonal(change) + ratios_dot[:, None]) / values, axis=1)
    return statistics(kernel, y, log_ratios, known), (pulled - moved, log_det_dot)
