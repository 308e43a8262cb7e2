"""The exact evidence of a linear autoencoder, small enough to integrate."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from ...core._convert import positive, whole


def linear_log_evidence(
    x: Any,
    latent: int,
    *,
    encoder_scale: float | int,
    decoder_scale: float | int,
    sigma: float | int,
    nodes: int = 40,
) -> float:
    """Return the log evidence of `x_n ~ N(W_d W_e x_n, sigma^2)`, in nats.

    Weights of encoder and decoder are Gaussian with mean 0; there are no biases. Given the
    encoder, columns of x are independent with covariance `sigma^2 I + decoder_scale^2 Z Z'`,
    `Z = x W_e'`; the encoder's few numbers are then integrated by Gauss-Hermite quadrature.

    Args:
        x: Data, `(row, feature)`.
        latent: Numbers in a code.
        encoder_scale: Standard deviation of the encoder's weights.
        decoder_scale: Of the decoder's.
        sigma: Of the noise.
        nodes: For each weight of the encoder.

    Raises:
        ValueError: If there are too many weights for a quadrature.
    """
    x = jnp.asarray(x)
    latent, nodes = whole("latent", least=1)(latent), whole("nodes", least=2)(nodes)
    s_e = positive("encoder_scale")(encoder_scale)
    s_d, sigma = positive("decoder_scale")(decoder_scale), positive("sigma")(sigma)
    (num, dim), size = x.shape, latent * x.shape[1]
    if nodes**size > 2**20:
        raise ValueError(
            f"`latent` times features must be few for a quadrature of {nodes} nodes each; got "
            f"{latent} times {dim}."
        )
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    log_weights = np.log(weights) - 0.5 * math.log(2 * math.pi)
    every = lambda v: np.array(list(itertools.product(v, repeat=size)))
    grid, log_each = every(points).reshape(-1, latent, dim), every(log_weights).sum(axis=1)

    def given(encoder):
        root = s_d * s_e * x @ encoder.T
        law = dist.LowRankMultivariateNormal(jnp.zeros(num), root, jnp.full(num, sigma**2))
        return jnp.sum(law.log_prob(x.T))

    each = jax.lax.map(given, grid.astype(x.dtype), batch_size=1024)
    return float(logsumexp(each + jnp.asarray(log_each, x.dtype)))
