"""The exact evidence of a linear autoencoder, small enough to integrate."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from ...core._convert import positive, whole

MOST = 2**20  # nodes of the quadrature


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
    encoder the rows of W_d are integrated out in closed form,

        log p(x | W_e) = -(N D / 2) log(2 pi sigma^2) - (D / 2) log |I + r Z'Z|
                         - (|x|^2 - sum_j x_j'Z (I / r + Z'Z)^-1 Z'x_j) / (2 sigma^2),

    with Z = x W_e' and r = decoder_scale^2 / sigma^2. The encoder's few numbers are then
    integrated by Gauss-Hermite quadrature.

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
    s_e, s_d = (
        positive("encoder_scale")(encoder_scale),
        positive("decoder_scale")(decoder_scale),
    )
    sigma = positive("sigma")(sigma)
    (num, dim), size = x.shape, latent * x.shape[1]
    if nodes**size > MOST:
        raise ValueError(
            f"`latent` times features must be few for a quadrature of {nodes} nodes each; got "
            f"{latent} times {dim}."
        )
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    log_weights = np.log(weights) - 0.5 * math.log(2 * math.pi)
    grid = jnp.asarray(list(itertools.product(points, repeat=size))).reshape(-1, latent, dim)
    log_each = np.array(list(itertools.product(log_weights, repeat=size))).sum(axis=1)
    ratio, gram = (s_d / sigma) ** 2, x.T @ x

    def given(encoder):
        read = s_e * encoder @ gram  # Z'x
        square = s_e * read @ encoder.T  # Z'Z
        eye = jnp.eye(latent, dtype=x.dtype)
        _, log_det = jnp.linalg.slogdet(eye + ratio * square)
        explained = jnp.sum(read * jnp.linalg.solve(eye / ratio + square, read))
        left = (jnp.trace(gram) - explained) / sigma**2
        return -0.5 * (num * dim * math.log(2 * math.pi * sigma**2) + dim * log_det + left)

    each = jax.lax.map(given, grid.astype(x.dtype), batch_size=1024)
    return float(logsumexp(each + jnp.asarray(log_each, x.dtype)))
