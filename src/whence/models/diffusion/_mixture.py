"""Mixtures of normals under noise: their density and score at every time in closed form."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ...core._types import Scalar
from ._noise import AbstractNoise, Vector, as_matrix, warn_of_units


class GaussianMixture(eqx.Module):
    """A mixture of normals whose data are disturbed by a noise.

    What a perfect score network would have learned: `mixture(t, x)` is the gradient of the log
    density at time `t`.

    Attributes:
        noise: The noise.
        weights: Of the components, with a sum of 1, `(component,)`.
        means: `(component, dim)`.
        covariances: `(component, dim, dim)`; numbers are variances in all directions.
    """

    noise: AbstractNoise
    weights: Float[Array, " component"]
    means: Float[Array, "component dim"]
    covariances: Float[Array, "component dim dim"]

    def __init__(self, noise: AbstractNoise, weights: Any, means: Any, covariances: Any):
        """Check shapes and bring them into one form.

        Args:
            noise: The noise.
            weights: Positive numbers; they are divided by their sum.
            means: `(component, dim)`.
            covariances: A number, one per component, or `(component, dim, dim)`.

        Raises:
            ValueError: If shapes do not fit, or a weight or a variance is not positive.
        """
        weights, means = np.asarray(weights, float), np.asarray(means, float)
        if means.ndim != 2 or weights.shape != means.shape[:1]:
            raise ValueError(
                "`means` must have shape (component, dim), with the components of `weights`; "
                f"got shapes {means.shape} and {weights.shape}."
            )
        dim, spread = means.shape[1], np.asarray(covariances, float)
        if spread.ndim < 2:
            spread = np.broadcast_to(spread, weights.shape)[:, None, None] * np.eye(dim)
        if spread.shape != (*means.shape, dim):
            raise ValueError(
                f"`covariances` must be a number, or have shape {weights.shape} or "
                f"{(*means.shape, dim)}; got {spread.shape}."
            )
        if not np.all(weights > 0) or not np.all(np.linalg.eigvalsh(spread) > 0):
            raise ValueError(
                "`weights` and the eigenvalues of `covariances` must be positive; got weights "
                f"{weights} and a smallest eigenvalue of {np.linalg.eigvalsh(spread).min():g}."
            )
        each = np.diagonal(spread, axis1=1, axis2=2)
        shares = weights / weights.sum()
        mean = shares @ means
        widest = np.sqrt(shares @ (each + (means - mean) ** 2))
        warn_of_units("means", noise, mean, widest, np.sqrt(each.min(axis=0)))
        self.noise = noise
        self.weights = jnp.asarray(shares)
        self.means, self.covariances = jnp.asarray(means), jnp.asarray(spread)

    def log_prob(self, t: Scalar, x: Vector) -> Scalar:
        """Return the log density at time `t`, in nats."""
        dim = self.means.shape[1]
        move = as_matrix(self.noise.mean(t), dim)
        spread = move @ self.covariances @ move.T
        spread += as_matrix(self.noise.covariance(t), dim)[None]
        lower = jnp.linalg.cholesky(spread)
        apart = self.noise.apart(x)[None] - self.noise.apart(self.means) @ move.T
        # Whitening matrices do not depend on `x`: under `vmap` there is one for all of them.
        eye = jnp.eye(dim, dtype=lower.dtype)
        whiten = jax.vmap(lambda a: solve_triangular(a, eye, lower=True))(lower)
        white = jnp.einsum("kij,kj->ki", whiten, apart)
        scale = jnp.log(jnp.diagonal(lower, axis1=1, axis2=2)).sum(1)
        each = jnp.log(self.weights) - 0.5 * (white**2).sum(1) - scale
        return jax.nn.logsumexp(each) - 0.5 * dim * jnp.log(2 * jnp.pi)

    def __call__(self, t: Scalar, x: Vector) -> Vector:
        """Return the score at time `t`: the gradient of the log density."""
        return jax.grad(self.log_prob, argnums=1)(t, x)
