"""Updates that are no gradient steps: proximal, and in Bures-Wasserstein space."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...core._convert import one_of, positive
from ...core._types import Scalar
from ._estimator import Evaluated, LogDensities, LogWeights
from ._family import AbstractFamily, FullRank, MeanField, Noise

Matrix = Float[Array, "dim dim"]


class AbstractUpdate(eqx.Module):
    """How parameters change, given some draws of noise."""

    @abc.abstractmethod
    def check(self, family: AbstractFamily) -> None:
        """Raise `ValueError` if it is not for this family."""

    @abc.abstractmethod
    def apply(
        self,
        family: AbstractFamily,
        params: PyTree,
        log_densities: LogDensities,
        noise: Noise,
        factor: Scalar,
    ) -> tuple[LogWeights, PyTree]:
        """Return `log p - log q` of each draw in nats, and the new parameters.

        Args:
            family: The family.
            params: Its parameters.
            log_densities: The target's log densities at flat positions.
            noise: From the family, with a leading axis `sample`.
            factor: On the size of the step, from 1 to 0.
        """


class Proximal(AbstractUpdate):
    """A gradient step of the energy alone, then the entropy's by its proximal operator.

    In location and scale themselves ("linear" scales), in which the ELBO of a log-concave
    target is concave. The proximal operator keeps scales positive.

    Attributes:
        step_size: Below the inverse of the largest curvature of the target.

    References:
        Domke (2020), Provable smoothness guarantees for black-box variational inference,
        arXiv:1901.08431. Kim, Oh, Wu, Ma, Gardner (2023), On the convergence of black-box
        variational inference, arXiv:2305.15349.
    """

    step_size: float = eqx.field(converter=positive("step_size"))

    def check(self, family: AbstractFamily) -> None:
        _require(self, family, (MeanField, FullRank))

    def apply(
        self,
        family: AbstractFamily,
        params: PyTree,
        log_densities: LogDensities,
        noise: Noise,
        factor: Scalar,
    ) -> tuple[LogWeights, PyTree]:
        """Make a step of the energy, then the proximal one."""
        at = Evaluated(family, params, log_densities, noise)
        gradient = at.energy_gradient()
        size = self.step_size * factor
        scale = jnp.exp(params["log_scale"])
        new = {"loc": params["loc"] + size * gradient["loc"]}
        lower = params.get("lower")
        if lower is None:
            diagonal = gradient["log_scale"] / scale
        else:
            # Entries below the diagonal are scale * lower, and a log scale scales its row.
            entries = scale[:, None] * jnp.tril(lower, -1)
            below = jnp.tril(gradient["lower"], -1) / scale[:, None]
            diagonal = (gradient["log_scale"] - jnp.sum(below * entries, axis=1)) / scale
            entries = entries + size * below
        stepped = scale + size * diagonal
        moved = (stepped + jnp.sqrt(stepped**2 + 4 * size)) / 2
        new["log_scale"] = jnp.log(moved)
        if lower is not None:
            new["lower"] = entries / moved[:, None]
        return at.plain, new


class BuresWasserstein(AbstractUpdate):
    """Forward-backward Gaussian variational inference (FB-GVI), for `FullRank`.

    A step of the mean and covariance along the gradient and Hessian of the target, expected
    under the Gaussian, then the entropy's by its proximal operator in Wasserstein distance:
    exact in closed form, `l' = (l + 2 h + sqrt(l (l + 4 h))) / 2` for eigenvalues `l` of the
    covariance and step size `h`. On a Gaussian target its fixed point is the target for any
    `h` below the inverse of the largest curvature.

    Attributes:
        step_size: None for 0.9 over the largest eigenvalue of each expected Hessian.
        hessian: `"exact"`, which differentiates each gradient once more by each latent, or
            `"stein"`, from the gradients at the draws by Stein's identity.

    References:
        Diao, Balasubramanian, Chewi, Salim (2023), Forward-backward Gaussian variational
        inference via JKO in the Bures-Wasserstein space, arXiv:2304.05398, algorithm 1.
    """

    step_size: float | None = eqx.field(
        default=None, converter=positive("step_size", optional=True)
    )
    hessian: str = eqx.field(default="exact", converter=one_of("hessian", ("exact", "stein")))

    def check(self, family: AbstractFamily) -> None:
        _require(self, family, (FullRank,))

    def apply(
        self,
        family: AbstractFamily,
        params: PyTree,
        log_densities: LogDensities,
        noise: Noise,
        factor: Scalar,
    ) -> tuple[LogWeights, PyTree]:
        """Make a forward step, then a backward one."""
        scale = jnp.exp(params["log_scale"])
        unit = jnp.eye(scale.size, dtype=scale.dtype)
        root = scale[:, None] * (unit + jnp.tril(params["lower"], -1))
        positions = params["loc"][None] + noise @ root.T
        log_density, slope, curvature = self._expected(log_densities, positions, noise, root)
        log_prob = jax.vmap(lambda n: family.log_prob(params, n))(noise)
        size = factor * self._size(curvature)
        new_root = backward(forward(root, curvature, size), size)
        new_scale = jnp.diagonal(new_root)
        return log_density - log_prob, {
            "loc": params["loc"] - size * slope,
            "log_scale": jnp.log(new_scale),
            "lower": jnp.tril(new_root / new_scale[:, None], -1),
        }

    def _size(self, curvature: Matrix) -> Scalar:
        if self.step_size is not None:
            return jnp.asarray(self.step_size, curvature.dtype)
        return 0.9 / jnp.max(jnp.abs(jnp.linalg.eigvalsh(curvature)))

    def _expected(self, log_densities, positions, noise, root):
        """Return log densities, and mean gradient and Hessian of minus the log density."""
        value = lambda x: -jnp.sum(log_densities(x))
        gradient = jax.grad(value)(positions)
        slope = jnp.mean(gradient, axis=0)
        if self.hessian == "stein":
            # E[H] = S^-1 E[(x - m) g'], with S = L L' and x - m = L e.
            product = noise.T @ (gradient - slope[None]) / max(len(noise) - 1, 1)
            curvature = jax.scipy.linalg.solve_triangular(root, product, trans=1, lower=True)
        else:

            def column(direction):
                directions = jnp.broadcast_to(direction[None], positions.shape)
                return jnp.mean(
                    jax.jvp(jax.grad(value), (positions,), (directions,))[1], axis=0
                )

            curvature = jax.lax.map(column, jnp.eye(root.shape[0], dtype=root.dtype))
        return log_densities(positions), slope, (curvature + curvature.T) / 2


def forward(root: Matrix, curvature: Matrix, size: Scalar) -> Matrix:
    """Return a root of the covariance after a step along the Hessian."""
    return root - size * curvature @ root


def backward(root: Matrix, size: Scalar) -> Matrix:
    """Return the Cholesky factor of the covariance after the proximal step of the entropy."""
    axes, singular, _ = jnp.linalg.svd(root)
    value = singular**2
    grown = (value + 2 * size + singular * jnp.sqrt(value + 4 * size)) / 2
    _, upper = jnp.linalg.qr(jnp.sqrt(grown)[:, None] * axes.T)
    return upper.T * jnp.sign(jnp.diagonal(upper))[None]


def _require(update: AbstractUpdate, family: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(family, kinds):
        names = " or ".join(f"`{kind.__name__}()`" for kind in kinds)
        raise ValueError(
            f"{type(update).__name__} is an update of {names} of all latents together; got "
            f"{type(family).__name__}."
        )
