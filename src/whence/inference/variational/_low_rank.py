"""Gaussians with a covariance of low rank beside a diagonal one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ...core._convert import positive, whole
from ...core._types import PRNGKey, Scalar
from ._family import HALF_LOG_2PI, AbstractJointGaussian, Vector, key_of, normal_entropy


class LowRank(AbstractJointGaussian):
    """Gaussians with the covariance `D (I + F F') D`, `D` diagonal and `F` of few columns.

    A draw is `location + D (noise + F other)`: memory and time are those of `rank` mean
    fields, where `FullRank` takes the square of the dimension.

    Attributes:
        rank: Columns of `F`.
        initial_scale: Standard deviation at the start.

    References:
        Ong, Nott, Smith (2018), Gaussian variational approximation with a factor covariance
        structure, arXiv:1701.03208.
    """

    rank: int = eqx.field(static=True, default=5, converter=whole("rank", least=1))
    initial_scale: float = eqx.field(default=0.1, converter=positive("initial_scale"))

    scale: str = eqx.field(default="exp", init=False)

    def noise(self, like: Vector, num: int, *, key: PRNGKey) -> Float[Array, "sample noise"]:
        return jr.normal(key, (num, like.size + self.rank), like.dtype)

    def others(self, location: Vector) -> dict[str, Array]:
        # Without columns no direction is better than another: F = 0 is a saddle point.
        shape = (location.size, self.rank)
        return {"factor": 0.1 * jr.normal(key_of(location), shape, location.dtype)}

    def white(self, params: dict[str, Array], noise: Array) -> Vector:
        own, other = noise[: -self.rank], noise[-self.rank :]
        return own + params["factor"] @ other

    def mixed(self, params: dict[str, Array], step: Vector) -> Vector:
        return step

    def inverse(self, params: dict[str, Array], position: Vector) -> Array:
        own = (position - params["loc"]) * jnp.exp(-params["log_scale"])
        return jnp.concatenate([own, jnp.zeros(self.rank, own.dtype)])

    def _solve(self, params: dict[str, Array], vector: Vector) -> tuple[Vector, Scalar]:
        """Return `(I + F F')^-1 vector`, and half the log determinant (Woodbury)."""
        factor = params["factor"]
        inner = jnp.eye(self.rank, dtype=factor.dtype) + factor.T @ factor
        root = jnp.linalg.cholesky(inner)
        solved = jax.scipy.linalg.cho_solve((root, True), factor.T @ vector)
        return vector - factor @ solved, jnp.sum(jnp.log(jnp.diagonal(root)))

    def log_prob(self, params: dict[str, Array], noise: Array) -> Scalar:
        white = self.white(params, noise)
        solved, half_log_det = self._solve(params, white)
        constant = jnp.sum(params["log_scale"] + HALF_LOG_2PI)
        return -0.5 * white @ solved - half_log_det - constant

    def score(self, params: dict[str, Array], noise: Array) -> Vector:
        solved, _ = self._solve(params, self.white(params, noise))
        return -solved * jnp.exp(-params["log_scale"])

    def entropy(self, params: dict[str, Array]) -> Scalar:
        return self._solve(params, params["loc"])[1] + normal_entropy(params["log_scale"])

    def describe(self, params: dict[str, Array]) -> dict[str, Array]:
        scale = jnp.exp(params["log_scale"])
        columns = scale[:, None] * params["factor"]
        return {"loc": params["loc"], "scale": scale, "columns": columns}
