"""A process seen through its values at a few inputs."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ....core._types import AnyArray
from ..network._abstract_layer import AbstractLayer


class Projection(NamedTuple):
    """What the values at inducing inputs, `L white`, say of the function at other inputs.

    For a scale of 1: given them its mean is `read' white`, its variance `residual`.
    """

    read: Float[Array, "inducing row"]  # `L^-1 K(inducing, x)`
    residual: Float[Array, " row"]  # variance that is left, at least 0


def factor(network: AbstractLayer, inducing: AnyArray, jitter: Array) -> Array:
    """Return the factor L of the covariance of inducing values for a scale of 1."""
    covariance = network.nngp(inducing)
    size = len(covariance)
    noise = jitter.astype(covariance.dtype) * jnp.mean(jnp.diagonal(covariance))
    return jnp.linalg.cholesky(covariance + noise * jnp.eye(size, dtype=covariance.dtype))


def project(
    network: AbstractLayer, inducing: AnyArray, x: AnyArray, jitter: Array
) -> Projection:
    """Return what inducing values say of the function at `x`.

    The same factor, jitter included, serves the mean, the variance that is left and the
    prior of inducing values: those are values with a noise, and all is exact about them.

    References:
        Titsias (2009), Variational learning of inducing variables in sparse Gaussian
        processes, AISTATS.
    """
    tril = factor(network, inducing, jitter)
    read = solve_triangular(tril, network.nngp(inducing, x).astype(tril.dtype), lower=True)
    before = network.diagonal(x).nngp.astype(tril.dtype)
    return Projection(read, jnp.maximum(before - jnp.sum(read**2, axis=0), 0))
