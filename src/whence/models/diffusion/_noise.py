"""Noise that is added to data: linear stochastic differential equations forward in time.

    dx = A(t) x dt + L(t) dW,    Q = L L^T,    0 <= t <= horizon

so that `x_t` given `x_0` is normal with mean `M(t) x_0` and covariance `V(t)`. Most noises are
the same in every direction: `A`, `L`, `M`, `V` are then numbers, else matrices.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jaxtyping import Array, Float

from ...core._convert import positive
from ...core._types import Scalar

Factor = Float[Array, ""] | Float[Array, "dim dim"]  # of the unit matrix, or a matrix
Vector = Float[Array, " dim"]


class AbstractNoise(eqx.Module):
    """A linear stochastic differential equation that turns data into noise."""

    horizon: eqx.AbstractVar[float]

    @abc.abstractmethod
    def drift(self, t: Scalar) -> Factor:
        """Return `A(t)`."""

    @abc.abstractmethod
    def diffusion(self, t: Scalar) -> Factor:
        """Return `L(t)`."""

    @abc.abstractmethod
    def mean(self, t: Scalar) -> Factor:
        """Return `M(t)`."""

    @abc.abstractmethod
    def covariance(self, t: Scalar) -> Factor:
        """Return `V(t)`."""

    def times(self, steps: int) -> Float[np.ndarray, " time"]:
        """Return `steps + 1` times from the horizon down to zero."""
        return np.linspace(self.horizon, 0.0, steps + 1)


class VariancePreserving(AbstractNoise):
    """`dx = -beta(t) x / 2 dt + sqrt(beta(t)) dW`, with `beta` linear in time.

    Attributes:
        first: `beta` at time 0.
        last: `beta` at the horizon.
        horizon: Length of time; long enough if the integral of `beta` is 10 or more.

    References:
        Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole (2021), "Score-based generative
        modeling through stochastic differential equations", ICLR, equation 11.
    """

    first: float = eqx.field(default=0.1, converter=positive("first"))
    last: float = eqx.field(default=20.0, converter=positive("last"))
    horizon: float = eqx.field(default=1.0, converter=positive("horizon"))

    def _beta(self, t):
        return self.first + (self.last - self.first) * t / self.horizon

    def _integral(self, t):
        return self.first * t + 0.5 * (self.last - self.first) * t**2 / self.horizon

    def drift(self, t: Scalar) -> Factor:
        return -0.5 * self._beta(t)

    def diffusion(self, t: Scalar) -> Factor:
        return jnp.sqrt(self._beta(t))

    def mean(self, t: Scalar) -> Factor:
        return jnp.exp(-0.5 * self._integral(t))

    def covariance(self, t: Scalar) -> Factor:
        return -jnp.expm1(-self._integral(t))


class VarianceExploding(AbstractNoise):
    """`dx = L(t) dW`: `x_t` is `x_0` with noise whose scale grows geometrically.

    The variance at time `t` is `smallest^2 ((largest / smallest)^(2 t) - 1)`.

    Attributes:
        smallest: Scale of the noise at first, well below what data differ by.
        largest: Scale at time 1, the horizon, well above the spread of the data.

    References:
        Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole (2021), equation 9.
    """

    smallest: float = eqx.field(default=0.01, converter=positive("smallest"))
    largest: float = eqx.field(default=20.0, converter=positive("largest"))

    def __check_init__(self):
        if self.largest <= self.smallest:
            raise ValueError(
                f"`largest` must be above `smallest`, {self.smallest}; got {self.largest}."
            )

    @property
    def horizon(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Length of time."""
        return 1.0

    @property
    def _rate(self) -> float:
        return 2.0 * float(np.log(self.largest / self.smallest))

    def drift(self, t: Scalar) -> Factor:
        return jnp.zeros_like(t)

    def diffusion(self, t: Scalar) -> Factor:
        return self.smallest * jnp.sqrt(self._rate * jnp.exp(self._rate * t))

    def mean(self, t: Scalar) -> Factor:
        return jnp.ones_like(t)

    def covariance(self, t: Scalar) -> Factor:
        return self.smallest**2 * jnp.expm1(self._rate * t)


class LinearNoise(AbstractNoise):
    """`dx = A x dt + L dW` with constant matrices; `M` and `V` by one matrix exponential.

    Attributes:
        matrix: `A`, `(dim, dim)`.
        factor: `L`, `(dim, dim)`.
        horizon: Length of time.

    References:
        Van Loan (1978), "Computing integrals involving the matrix exponential",
        doi:10.1109/TAC.1978.1101743.
    """

    matrix: Float[Array, "dim dim"] = eqx.field(converter=jnp.asarray)
    factor: Float[Array, "dim dim"] = eqx.field(converter=jnp.asarray)
    horizon: float = eqx.field(default=1.0, converter=positive("horizon"))

    def __check_init__(self):
        shapes = jnp.shape(self.matrix), jnp.shape(self.factor)
        if len(set(shapes)) != 1 or len(shapes[0]) != 2 or shapes[0][0] != shapes[0][1]:
            raise ValueError(
                "`matrix` and `factor` must be square and of one shape; got shapes "
                f"{shapes[0]} and {shapes[1]}."
            )

    def drift(self, t: Scalar) -> Factor:
        return self.matrix

    def diffusion(self, t: Scalar) -> Factor:
        return self.factor

    def mean(self, t: Scalar) -> Factor:
        return jax.scipy.linalg.expm(self.matrix * t)

    def covariance(self, t: Scalar) -> Factor:
        dim = self.matrix.shape[0]
        noise = self.factor @ self.factor.T
        block = jnp.block([[-self.matrix, noise], [jnp.zeros_like(noise), self.matrix.T]])
        exponential = jax.scipy.linalg.expm(block * t)
        moved = exponential[dim:, dim:].T @ exponential[:dim, dim:]
        return 0.5 * (moved + moved.T)


def times(factor: Any, vector: Vector) -> Vector:
    """Return a factor, a number or a matrix, times a vector."""
    return factor @ vector if jnp.ndim(factor) == 2 else factor * vector


def trace(factor: Any, dim: int) -> Scalar:
    """Return the trace of a factor in `dim` dimensions."""
    return jnp.trace(factor) if jnp.ndim(factor) == 2 else dim * factor


def as_matrix(factor: Any, dim: int) -> Float[Array, "dim dim"]:
    """Return a factor as a matrix."""
    factor = jnp.asarray(factor)
    return factor if factor.ndim == 2 else factor * jnp.eye(dim, dtype=factor.dtype)
