"""A Gaussian process of codes seen through random inducing inputs: one layer."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from ....core._types import AnyArray
from ....language import Model, latent


def squared_exponential(x1: Array, x2: Array) -> Array:
    """Return `exp(-|a - b|^2 / 2)` for all pairs of rows, which length scales have divided."""
    square = jnp.sum((x1[:, None] - x2[None]) ** 2, axis=-1)
    return jnp.exp(-square / 2)


class SparseLayer(Model):
    """Functions of inputs with a GP prior, and their values at the rows of the data.

    Given inducing inputs s and whitened values v (u = L v with L L' = K_ss), values at rows
    are independent, FITC's assumption, with mean `K_ns L^-T v` and variance `k_nn - |L^-1
    K_sn|^2`. Inducing inputs and hyper-parameters are latents, not fitted numbers, and so are
    the values themselves, standardised.

    Attributes:
        centre: Mean of inducing inputs, `(feature,)`.
        spread: Their standard deviation, and the unit of length scales.
        size: Numbers of inducing inputs and outputs.
        correlation: Function of inputs in units of length scales.
        identity: Whether the mean is the inputs' own first columns, for deep models.

    References:
        Snelson and Ghahramani (2006), Sparse Gaussian processes using pseudo-inputs, NIPS.
        Rossi, Heinonen, Bonilla, Shen and Filippone (2021), arXiv:2003.03080.
    """

    centre: Array
    spread: Array
    size: tuple[int, int] = eqx.field(static=True)
    correlation: Any = eqx.field(static=True, default=squared_exponential)
    identity: bool = eqx.field(static=True, default=False)
    inducing: Array = latent(
        lambda m: dist.Normal(m.centre, m.spread),
        shape=lambda m: (m.size[0], len(m.centre)),
        start="prior",
    )
    white: Array = latent(dist.Normal(0.0, 1.0), shape=lambda m: m.size, start="prior")
    lengthscale: Array = latent(lambda m: dist.LogNormal(jnp.log(m.spread), 1.0), start="prior")
    amplitude: Array = latent(dist.LogNormal(0.0, 0.5), start="prior")

    def moments(self, x: AnyArray) -> tuple[Array, Array]:
        """Return mean `(row, output)` and variance `(row,)` of values given s and v."""
        x, near = jnp.asarray(x), self.inducing / self.lengthscale
        scaled = x / self.lengthscale
        matrix = self.correlation(near, near)
        jitter = 10 * jnp.finfo(matrix.dtype).eps ** 0.75
        tril = jnp.linalg.cholesky(matrix + jitter * jnp.eye(len(near), dtype=matrix.dtype))
        read = solve_triangular(tril, self.correlation(near, scaled), lower=True)
        mean = self.amplitude * (read.T @ self.white)
        # Correlations are 1 on the diagonal.
        left = jnp.maximum(1 - jnp.sum(read**2, axis=0), 0)
        if self.identity:
            mean = mean + x[:, : mean.shape[1]]
        return mean, self.amplitude**2 * left

    def values(self, x: AnyArray, standard: Array) -> Array:
        """Return values at rows, given standard normal numbers `(row, output)`."""
        mean, variance = self.moments(x)
        # The square root has no slope at 0, where a row is an inducing input.
        tiny = jnp.asarray(1e-5, mean.dtype)
        return mean + jnp.sqrt(variance + tiny)[:, None] * standard
