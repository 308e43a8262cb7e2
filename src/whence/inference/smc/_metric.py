"""What moves are whitened by: a root of the covariance of the particles, or one's own."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ...core._convert import flag

# A dense factor costs d^2 a particle and move, and needs many particles a dimension.
_MAX_DENSE = 100
_PARTICLES_PER_DIMENSION = 10


class Factor(eqx.Module):
    """Coordinates in which particles have about unit covariance.

    Attributes:
        root: A square root of their covariance: a lower triangle, or standard deviations.
        centre: Their mean.
    """

    root: Float[Array, "dim dim"] | Float[Array, " dim"]
    centre: Float[Array, " dim"]

    def colour(self, z: Float[Array, "particle dim"]) -> Float[Array, "particle dim"]:
        """Turn whitened rows into rows of the particles' scale."""
        return z * self.root[None] if self.root.ndim == 1 else z @ self.root.T

    def pull(self, gradient: Float[Array, "particle dim"]) -> Float[Array, "particle dim"]:
        """Return gradients with respect to the whitened coordinates."""
        return gradient * self.root[None] if self.root.ndim == 1 else gradient @ self.root

    def whiten(self, x: Float[Array, "particle dim"]) -> Float[Array, "particle dim"]:
        """Turn rows of the particles' scale into whitened ones, about the centre."""
        centred = x - self.centre[None]
        if self.root.ndim == 1:
            return centred / self.root[None]
        return solve_triangular(self.root, centred.T, lower=True).T


class AbstractMetric(eqx.Module):
    """How particles are whitened."""

    @abc.abstractmethod
    def factor(
        self, x: Float[Array, "particle dim"], log_weights: Float[Array, " particle"]
    ) -> Factor:
        """Return the coordinates to move particles in; not to depend on one of many."""


class ParticleCovariance(AbstractMetric):
    """The covariance of the weighted particles.

    Attributes:
        dense: Whether the whole, or of each coordinate alone; None: the whole up to 100
            dimensions if there are 10 particles to each.
    """

    dense: bool | None = eqx.field(default=None, converter=flag("dense", optional=True))

    def factor(self, x, log_weights) -> Factor:
        num, dim = x.shape
        auto = dim <= _MAX_DENSE and _PARTICLES_PER_DIMENSION * dim <= num
        return covariance_factor(x, log_weights, auto if self.dense is None else self.dense)


METRICS: dict[str, AbstractMetric] = {
    "auto": ParticleCovariance(),
    "dense": ParticleCovariance(True),
    "diagonal": ParticleCovariance(False),
}


def covariance_factor(
    x: Float[Array, "particle dim"], log_weights: Float[Array, " particle"], dense: bool
) -> Factor:
    """Return a root of the weighted covariance of the particles."""
    alive = log_weights > -jnp.inf
    weights = jnp.exp(log_weights).astype(x.dtype)
    mean = weights @ jnp.where(alive[:, None], x, 0.0)
    centred = jnp.where(alive[:, None], x - mean[None], 0.0)
    unbiased = 1.0 / jnp.maximum(1.0 - jnp.sum(weights**2), 0.5)
    variance = unbiased * weights @ centred**2
    # A coordinate in which all particles agree gets the smallest scale that can undo it.
    tiny = jnp.finfo(x.dtype).eps * (1.0 + weights @ jnp.where(alive[:, None], x**2, 0.0))
    deviation = jnp.sqrt(jnp.maximum(variance, tiny))
    if not dense:
        return Factor(deviation, mean)
    whole = (
        unbiased * (weights[:, None] * centred).T @ centred / jnp.outer(deviation, deviation)
    )
    ridge = 10.0 * x.shape[1] * jnp.finfo(x.dtype).eps
    root = jnp.linalg.cholesky(whole + ridge * jnp.eye(x.shape[1], dtype=x.dtype))
    usable = jnp.all(jnp.isfinite(root))
    root = jnp.where(usable, root, jnp.eye(x.shape[1], dtype=x.dtype))
    return Factor(deviation[:, None] * root, mean)
