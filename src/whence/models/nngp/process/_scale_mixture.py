"""A network's Gaussian process mixed over one scale, before and after observations."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ....core._convert import flag, part, whole
from ....core._key import seeded
from ....core._types import AnyArray, PRNGKey, Scalar
from .._parameter import parameter, require_values
from .._precision import (
    check_evidence,
    check_rounding,
    is_single,
    lost_nats,
    resolved,
    rounding_of,
    weights_of,
)
from ..laws._abstract_law import AbstractLaw, mean_inverse
from ..laws._numerical import scale_law
from ..network._abstract_layer import AbstractLayer
from ._abstract_conditioned import AbstractConditioned, OneScale
from ._cholesky import cholesky, factor_or_penalty, plus_diagonal, whitened_covariance
from ._joint import Joint
from ._remarks import remarks_of


class ScaleMixture(eqx.Module):
    """`f | v ~ GP(0, v K)` and `y | f, v ~ N(f, v noise)`, with v of any law.

    The limit of wide networks whose last layer has a random variance v, shared by all inputs
    and all outputs. Because it is shared, an outlier widens every prediction: this is not
    robust regression. Its tails are heavy where observations are few, as degrees of freedom
    grow with them.

    Args:
        network: Description; its readout should have variance 1, which v multiplies.
        scale: Law of v, or a numpyro distribution on the positive numbers.
        noise: Variance of the noise as a multiple of v, at least 0.

    References:
        Lee, Yun, Yang, Lee (2022), Scale mixtures of neural network Gaussian processes,
        arXiv:2107.01408.
    """

    network: AbstractLayer
    scale: AbstractLaw
    noise: Float[Array, ""]

    def __init__(
        self,
        network: AbstractLayer,
        scale: AbstractLaw | dist.Distribution,
        noise: Any = 0.0,
    ):
        require_values({"network": network, "scale": scale, "noise": noise}, "`ScaleMixture`")
        self.network = part("network", AbstractLayer)(network)
        self.scale, self.noise = scale_law(scale), parameter("noise", noise, zero=True)

    def condition(self, x: AnyArray, y: AnyArray) -> ScaleMixtureConditioned:
        """Return the process given observations.

        Args:
            x: Inputs, shape `(rows, features)` or `(rows, *spatial, channels)`.
            y: Observations, shape `(rows,)`, or `(rows, outputs)` which share v.

        Inside compiled code nothing is added to the covariance, and what follows is NaN
        where it is not positive definite.

        Raises:
            ValueError: If shapes do not fit, numbers are not finite, float32 is not enough,
                or the covariance is not positive definite even with 1e-4 of its mean
                diagonal added.
        """
        covariance, y = self.network.nngp(x), check_targets(x, y)
        tril, jitter = _factor(self._with_noise(covariance))
        x, y = jnp.asarray(x), y.astype(tril.dtype)
        white = solve_triangular(tril, y.reshape(len(y), -1), lower=True)
        return _checked(ScaleMixtureConditioned(self, x, y, tril, white, jitter))

    def log_evidence(self, x: AnyArray, y: AnyArray) -> Scalar:
        """Return `log p(y)`, to differentiate by variances, noise and parameters of the law.

        As `condition(x, y).log_evidence`, but without jitter, and minus infinity where the
        covariance is not positive definite. Raising it over both parameters of an inverse
        gamma law on one data set is degenerate: it has no maximum short of a known scale.

        Args:
            x: Inputs, shape `(rows, features)` or `(rows, *spatial, channels)`.
            y: Observations, shape `(rows,)` or `(rows, outputs)`.
        """
        y = check_targets(x, y)
        outputs = None if y.ndim == 1 else y.shape[1]
        return self.prior(x, noisy=True, outputs=outputs).log_prob(y)

    def prior(self, x: AnyArray, *, noisy: bool = False, outputs: int | None = None) -> Joint:
        """Return the law of the function before observations, shape `(rows,)`.

        With `noisy` it is a likelihood: its density is exact, and minus infinity (with a
        derivative of zero) where the covariance is not positive definite. Without, rounding
        is added to the diagonal, as the covariance of a smooth function is singular to it.

        Args:
            x: Inputs.
            noisy: Whether of observations and not of the function.
            outputs: Number of outputs, which share v: the shape is `(rows, outputs)`.
        """
        outputs = whole("outputs", least=1, optional=True)(outputs)
        covariance = self.network.nngp(x)
        if flag("noisy")(noisy):
            tril, penalty = factor_or_penalty(self._with_noise(covariance))
        else:
            tril = whitened_covariance(covariance, jnp.zeros(()), jnp.diagonal(covariance))
            penalty = jnp.zeros((), tril.dtype)
        return Joint(self.scale, tril, penalty, outputs)

    def _with_noise(self, covariance: Array) -> Array:
        return plus_diagonal(covariance, self.noise)


class LeaveOneOut(NamedTuple):
    """Each row of observations given all the others."""

    log_density: Array  # of a row, all its outputs jointly, in nats, shape `(rows,)`
    loc: Array  # location of its predictive law, as `y`
    deviation: Array  # scale of that law for v = 1, shape `(rows,)`
    quadratic: Array  # whitened sum of squares of the others, shape `(rows,)`


class ScaleMixtureConditioned(OneScale, AbstractConditioned):
    """A `ScaleMixture` given observations: a `whence.core.Conditioned`.

    Attributes:
        process: What was conditioned.
        x: Inputs.
        y: Observations, shape `(rows,)` or `(rows, outputs)`.
        tril: Factor L of the covariance A for v = 1, noise and jitter included.
        white: `L^-1 y`, shape `(rows, outputs)`.
        jitter: What had to be added to the diagonal of A; 0 usually.
    """

    process: ScaleMixture
    x: Array
    y: Array
    tril: Float[Array, "rows rows"]
    white: Float[Array, "rows outputs"]
    jitter: Float[Array, ""]

    @property
    def quadratic(self) -> Scalar:
        """Whitened sum of squares, the trace of `y' A^-1 y`."""
        return jnp.sum(self.white**2)

    @property
    def log_det(self) -> Scalar:
        """Log determinant of the covariance of all observations for v = 1."""
        return 2 * self.white.shape[1] * jnp.sum(jnp.log(jnp.diagonal(self.tril)))

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Predictive densities of each row given all the others, without a fit of any.

        The scale, too, is known from the others only: of `q` the row's share is taken off.

        Raises:
            ValueError: If there is one row only.

        References:
            Sundararajan, Keerthi (2001), Predictive approaches for choosing
            hyperparameters in Gaussian processes, doi:10.1162/08997660151134343, for
            Gaussian processes.
        """
        rows, outputs = self.white.shape
        if rows < 2:
            raise ValueError("Leaving one row out needs at least 2 rows; got 1.")
        root = solve_triangular(self.tril, jnp.eye(rows, dtype=self.tril.dtype), lower=True)
        precision = jnp.sum(root**2, axis=0)  # diagonal of the inverse of A
        residual = (root.T @ self.white) / precision[:, None]
        rest = self.quadratic - jnp.sum(residual**2, axis=1) * precision
        rest = jnp.maximum(rest, 0)  # rounding
        law = self.process.scale
        before = jax.vmap(lambda q: law.log_integral(self.size - outputs, q))(rest)
        constant = outputs / 2 * (jnp.log(2 * jnp.pi) - jnp.log(precision))
        density = law.log_integral(self.size, self.quadratic) - before - constant
        loc = self.y - residual.reshape(self.y.shape)
        return LeaveOneOut(density, loc, 1 / jnp.sqrt(precision), rest)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know before trusting it, in words; empty if nothing."""
        return remarks_of(self, float(self.jitter))

    def moments(self, x: AnyArray) -> tuple[Array, Array]:
        """Return location `(points, outputs)` and covariance of the function for v = 1."""
        read, covariance = self._read(x), self.process.network.nngp(x)
        return read.T @ self.white, covariance - read.T @ read

    def _read(self, x: AnyArray) -> Array:
        across = self.process.network.nngp(self.x, x)
        return solve_triangular(self.tril, across, lower=True)

    def _resolved(self, variance: Array, read: Array) -> Array:
        if not is_single(variance.dtype):
            return variance
        alpha, of_point = (weights_of(self.tril, part) for part in (self.white, read))
        inverse = mean_inverse(self.process.scale, self.size, self.quadratic)
        return resolved(variance, rounding_of(self.tril), of_point, alpha, inverse)

    def _predict_each(self, x: AnyArray, noisy: bool) -> dist.Distribution:
        network = self.process.network
        before, read = network.diagonal(x).nngp, self._read(x)
        # What is observed without noise is known, up to rounding of either sign.
        rounding = jnp.finfo(before.dtype).eps * before
        left = jnp.maximum(before - jnp.sum(read**2, axis=0), rounding)
        variance = self._resolved(left + self._noise(noisy).astype(before.dtype), read)
        deviations = jnp.sqrt(variance)[:, None]
        loc = read.T @ self.white
        shape = (len(before), *self.y.shape[1:])
        scale = jnp.broadcast_to(deviations, loc.shape).reshape(shape)
        law = self.process.scale
        return law.marginals(self.size, self.quadratic, loc.reshape(shape), scale)

    def _predict(self, x: AnyArray, noisy: bool) -> dist.Distribution:
        loc, tril = self._factored(x, noisy)
        tril = repeated(tril, loc.shape[1])
        law = self.process.scale
        return law.mixture(self.size, self.quadratic, loc.T.reshape(-1), tril)

    def _factored(self, x: AnyArray, noisy: bool) -> tuple[Array, Array]:
        network, read = self.process.network, self._read(x)
        covariance = network.nngp(x) - read.T @ read
        tril = whitened_covariance(covariance, self._noise(noisy), network.diagonal(x).nngp)
        variance = jnp.sum(tril**2, axis=1)
        share = self._resolved(variance, read) / variance  # 1, or NaN
        return read.T @ self.white, tril * share[:, None]

    def _noise(self, noisy: bool) -> Array:
        return self.process.noise if noisy else jnp.zeros(())

    @seeded
    def sample(self, x: AnyArray, *, key: PRNGKey, draws: int = 1) -> dict[str, Array]:
        """Draw the scale and, given it, the function.

        Args:
            x: Inputs of the function.
            key: A typed key.
            draws: Number of draws.

        Returns:
            `scale`, shape `(draw,)`, and `latent`, shape `(draw, point)` or
            `(draw, point, output)`.
        """
        draws = whole("draws", least=1)(draws)
        key_scale, key_latent = jr.split(key)
        loc, tril = self._factored(x, False)
        scale = jnp.asarray(self.scale.sample(key_scale, (draws,)))
        white = tril @ jr.normal(key_latent, (draws, *loc.shape), loc.dtype)
        latent = loc + jnp.sqrt(scale)[:, None, None].astype(loc.dtype) * white
        return {"scale": scale, "latent": latent.reshape(draws, -1, *self.y.shape[1:])}

    def condition(self, x: AnyArray, y: AnyArray) -> ScaleMixtureConditioned:
        """Return the process given more observations, by rows added to the factor.

        Raises:
            ValueError: As `ScaleMixture.condition`, or if the outputs differ in number.
        """
        own = self.process._with_noise(self.process.network.nngp(x))
        x, y = jnp.asarray(x), check_targets(x, y, self.y).astype(self.tril.dtype)
        read = self._read(x)
        own = own + self.jitter * jnp.eye(len(own), dtype=own.dtype)
        corner, jitter = _factor(own - read.T @ read)
        above = jnp.zeros((len(self.tril), len(own)), own.dtype)
        tril = jnp.block([[self.tril, above], [read.T, corner]])
        residual = y.reshape(len(y), -1) - read.T @ self.white
        white = jnp.concatenate([self.white, solve_triangular(corner, residual, lower=True)])
        whole_x, whole_y = jnp.concatenate([self.x, x]), jnp.concatenate([self.y, y])
        jitter = jnp.maximum(self.jitter, jitter)
        return _checked(
            ScaleMixtureConditioned(self.process, whole_x, whole_y, tril, white, jitter)
        )


def _checked(given: ScaleMixtureConditioned) -> ScaleMixtureConditioned:
    """Return it if float32, where that is in use, is enough for its evidence."""
    if is_single(given.tril.dtype) and not isinstance(given.white, Tracer):
        inverse = mean_inverse(given.process.scale, given.size, given.quadratic)
        weights = weights_of(given.tril, given.white)
        check_evidence(lost_nats(rounding_of(given.tril), weights, inverse))
    return given


def _factor(covariance: Array) -> tuple[Array, Array]:
    """Return the factor and the jitter; in compiled code none, and NaN where it fails."""
    if not isinstance(covariance, Tracer):
        tril, jitter = cholesky(covariance)
        return tril, jnp.asarray(jitter, tril.dtype)
    tril, penalty = factor_or_penalty(covariance)
    return jnp.where(penalty < 0, jnp.nan, tril), jnp.zeros((), tril.dtype)


def repeated(tril: Array, outputs: int) -> Array:
    """Return the factor for several outputs, those of the first one first."""
    return jnp.kron(jnp.eye(outputs, dtype=tril.dtype), tril) if outputs > 1 else tril


def check_targets(x: AnyArray, y: AnyArray, earlier: Array | None = None) -> Array:
    """Return observations as an array."""
    y = y if isinstance(y, jax.Array | np.ndarray) else np.asarray(y)
    if earlier is not None and y.shape[1:] != earlier.shape[1:]:
        raise ValueError(
            f"`y` must have the outputs of the earlier ones, shape {earlier.shape[1:]} "
            f"per row; got {y.shape[1:]}."
        )
    if y.ndim not in (1, 2) or y.shape[0] != len(x) or 0 in y.shape:
        raise ValueError(
            "`y` must have shape (rows,) or (rows, outputs) with a row for each of the "
            f"{len(x)} rows of `x`; got {y.shape}."
        )
    if not isinstance(y, Tracer) and not np.all(np.isfinite(np.asarray(y))):
        raise ValueError(f"`y` must be finite; {np.sum(~np.isfinite(np.asarray(y)))} are not.")
    check_rounding("y", y)
    return jnp.asarray(y)
