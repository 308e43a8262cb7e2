"""Noise that is added to data: linear stochastic differential equations forward in time.

    dx = A(t) (x - c) dt + L(t) dW,    Q = L L^T,    0 <= t <= horizon

so that `x_t` given `x_0` is normal with mean `c + M(t) (x_0 - c)` and covariance `V(t)`. Most
noises are the same in every direction but for units: `A`, `L`, `M`, `V` are then numbers, or
vectors for diagonal matrices; else they are matrices.
"""

import abc
import dataclasses
import warnings
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jaxtyping import Array, Float

from ...core._convert import positive
from ...core._results import InferenceWarning
from ...core._types import AnyArray, Scalar

# Of the unit matrix, a diagonal, or a matrix.
Factor = Float[Array, ""] | Float[Array, " dim"] | Float[Array, "dim dim"]
Numbers = float | tuple[float, ...]  # one for all directions, or one for each
Vector = Float[Array, " dim"]

# Standard deviations of columns, and distances of their means, in units of a noise.
LEAST, MOST = 0.01, 10.0


class AbstractNoise(eqx.Module):
    """A linear stochastic differential equation that turns data into noise.

    Attributes:
        horizon: Length of time.
        centre: `c`, in the unit of the data.
    """

    horizon: eqx.AbstractVar[float]
    centre: eqx.AbstractVar[Numbers]

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

    def apart(self, x: Array) -> Array:
        """Return places as differences to the centre."""
        return x - jnp.asarray(self.centre, x.dtype)


def _numbers(name: str, default: float, *, above: float = -np.inf) -> Any:
    """Return a static field for a number, or one for each column."""

    def convert(value: Any) -> Numbers:
        found = np.asarray(value, float)
        if found.ndim > 1 or not np.all(np.isfinite(found) & (found > above)):
            rule = "finite" if above < 0 else "positive and finite"
            raise ValueError(f"`{name}` must be {rule}, one or one a column; got {value!r}.")
        return tuple(found.tolist()) if found.ndim else float(found)

    return eqx.field(static=True, default=default, converter=convert, kw_only=True)


class AbstractScaledNoise(AbstractNoise):
    """A noise that is the same in every direction, in units of the data.

    Attributes:
        scale: What data differ by, of all columns or of each.
    """

    scale: eqx.AbstractVar[Numbers]

    def fitted(self, data: AnyArray) -> "AbstractScaledNoise":
        """Return this noise in units of data: around their means, by their standard deviations.

        Args:
            data: `(row, dim)`. Columns that do not vary get the unit of the others.

        Raises:
            ValueError: If the data have another rank, are not finite, or do not vary at all.
        """
        data = np.asarray(data, float)
        if data.ndim != 2 or not np.isfinite(data).all() or not np.ptp(data, axis=0).any():
            raise ValueError(
                "`data` must be finite numbers that vary, of shape (row, dim); got shape "
                f"{data.shape}."
            )
        scale, varies = data.std(axis=0), np.ptp(data, axis=0) > 0
        scale = np.where(varies, scale, np.sqrt(np.mean(scale[varies] ** 2)))
        return dataclasses.replace(self, centre=data.mean(axis=0), scale=scale)


class VariancePreserving(AbstractScaledNoise):
    """`dz = -beta(t) z / 2 dt + sqrt(beta(t)) dW`, with `beta` linear in time.

    `z` is `(x - centre) / scale`.

    Attributes:
        first: `beta` at time 0.
        last: `beta` at the horizon.
        horizon: Length of time; long enough if the integral of `beta` is 10 or more.
        centre: Around which the noise is, one number or one for each column of the data.
        scale: Of the noise, well chosen if data differ by about as much: see `fitted`.

    References:
        Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole (2021), "Score-based generative
        modeling through stochastic differential equations", ICLR, equation 11.
    """

    first: float = eqx.field(default=0.1, converter=positive("first"))
    last: float = eqx.field(default=20.0, converter=positive("last"))
    horizon: float = eqx.field(default=1.0, converter=positive("horizon"))
    centre: Numbers = _numbers("centre", 0.0)
    scale: Numbers = _numbers("scale", 1.0, above=0.0)

    def _beta(self, t):
        return self.first + (self.last - self.first) * t / self.horizon

    def _integral(self, t):
        return self.first * t + 0.5 * (self.last - self.first) * t**2 / self.horizon

    def drift(self, t: Scalar) -> Factor:
        return -0.5 * self._beta(t)

    def diffusion(self, t: Scalar) -> Factor:
        return jnp.asarray(self.scale, t.dtype) * jnp.sqrt(self._beta(t))

    def mean(self, t: Scalar) -> Factor:
        return jnp.exp(-0.5 * self._integral(t))

    def covariance(self, t: Scalar) -> Factor:
        return jnp.asarray(self.scale, t.dtype) ** 2 * -jnp.expm1(-self._integral(t))


class VarianceExploding(AbstractScaledNoise):
    """`dx = L(t) dW`: `x_t` is `x_0` with noise whose scale grows geometrically.

    The variance at time `t` is `scale^2 smallest^2 ((largest / smallest)^(2 t) - 1)`.

    Attributes:
        smallest: Scale of the noise at first, well below what data differ by.
        largest: Scale at time 1, the horizon, well above the spread of the data.
        centre: Around which particles start, one number or one for each column of the data.
        scale: In which `smallest` and `largest` are measured: see `fitted`.

    References:
        Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole (2021), equation 9.
    """

    smallest: float = eqx.field(default=0.01, converter=positive("smallest"))
    largest: float = eqx.field(default=20.0, converter=positive("largest"))
    centre: Numbers = _numbers("centre", 0.0)
    scale: Numbers = _numbers("scale", 1.0, above=0.0)

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
        first = jnp.asarray(self.scale, t.dtype) * self.smallest
        return first * jnp.sqrt(self._rate * jnp.exp(self._rate * t))

    def mean(self, t: Scalar) -> Factor:
        return jnp.ones_like(t)

    def covariance(self, t: Scalar) -> Factor:
        first = jnp.asarray(self.scale, t.dtype) * self.smallest
        return first**2 * jnp.expm1(self._rate * t)


class LinearNoise(AbstractNoise):
    """`dx = A (x - c) dt + L dW`, constant matrices; `M` and `V` by one matrix exponential.

    Attributes:
        matrix: `A`, `(dim, dim)`.
        factor: `L`, `(dim, dim)`.
        horizon: Length of time.
        centre: `c`.

    References:
        Van Loan (1978), "Computing integrals involving the matrix exponential",
        doi:10.1109/TAC.1978.1101743.
    """

    matrix: Float[Array, "dim dim"] = eqx.field(converter=jnp.asarray)
    factor: Float[Array, "dim dim"] = eqx.field(converter=jnp.asarray)
    horizon: float = eqx.field(default=1.0, converter=positive("horizon"))
    centre: Numbers = _numbers("centre", 0.0)

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


def require_noise(name: str, score: Any, noise: AbstractNoise) -> None:
    """Raise `ValueError` if a score says that it is one of another noise."""
    own = getattr(score, "noise", noise)
    if own is not noise and isinstance(own, AbstractNoise) and not eqx.tree_equal(own, noise):
        raise ValueError(f"`noise` must be that of `{name}`, {own}; got {noise}.")


def warn_of_units(name: str, noise: AbstractNoise, mean: Any, widest: Any, narrowest: Any):
    """Tell of columns that a noise hides, or does not reach.

    Args:
        name: Of what has these columns.
        noise: The noise.
        mean: Of each column.
        widest: Its standard deviation.
        narrowest: Standard deviation of the narrowest part of it.
    """
    if not isinstance(noise, AbstractScaledNoise):
        return
    scale = np.asarray(noise.scale)
    apart, wide = np.abs(mean - np.asarray(noise.centre)) / scale, widest / scale
    off = (np.maximum(apart, wide) > MOST) | (narrowest / scale < LEAST)
    if off.any():
        column = int(np.argmax(off))
        warnings.warn(
            f"Column {column} of `{name}` (and {off.sum() - 1} more) is far from the units of "
            f"the noise: its mean is {apart[column]:.3g} scales from the centre, its standard "
            f"deviation {wide[column]:.3g} scales. No step of time is right for it, and no "
            "network learns it. Give `noise.fitted(data)`, or a noise of that `centre` and "
            "`scale`, wherever a noise is asked for.",
            InferenceWarning,
            stacklevel=3,
        )


def times(factor: Any, vector: Vector) -> Vector:
    """Return a factor times a vector."""
    return factor @ vector if jnp.ndim(factor) == 2 else factor * vector


def trace(factor: Any, dim: int) -> Scalar:
    """Return the trace of a factor in `dim` dimensions."""
    if jnp.ndim(factor) < 2:
        return jnp.sum(jnp.broadcast_to(factor, (dim,)))
    return jnp.trace(factor)


def as_matrix(factor: Any, dim: int) -> Float[Array, "dim dim"]:
    """Return a factor as a matrix."""
    factor = jnp.asarray(factor)
    return factor if factor.ndim == 2 else jnp.diag(jnp.broadcast_to(factor, (dim,)))
