"""Noise of a variance of its own: the process mixed over two scales, v and s2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from ...core._types import AnyArray, Scalar
from ._factor import whitened_covariance
from ._law import AbstractDensityLaw, AbstractLaw
from ._laws import FromDistribution
from ._laws_closed import InverseGamma, PointMass
from ._layer import AbstractLayer
from ._line import log_grid, nodes_on_line
from ._mixture_of_normals import NormalMixture, NormalMixtureMarginals
from ._process import _check_targets
from ._remarks import remarks_on
from ._spectrum import Spectrum, spectrum, statistics

NUM_OUTER, NUM_INNER = 65, 49  # nodes of log(s2 / v), and of log v for each


class IndependentNoise(eqx.Module):
    """`f | v ~ GP(0, v K)` and `y | f, s2 ~ N(f, s2)`, with v and s2 of any laws.

    As `ScaleMixture`, but the noise does not grow with the scale. One eigendecomposition of
    K serves all v and s2, which are integrated over by quadrature: log(s2 / v) on 65 nodes,
    and log v on 49 for each. Given the ratio, predictions have one location, that moves with
    it: they are mixtures of normal laws with different locations and covariances.

    Args:
        network: Description; its readout should have variance 1, which v multiplies.
        scale: Law of v, a numpyro distribution on the positive numbers, or a number.
        noise: Law of s2, the variance of the noise, or what `scale` may be; above 0.
    """

    network: AbstractLayer
    scale: AbstractLaw
    noise: AbstractLaw

    def __init__(self, network: AbstractLayer, scale: Any, noise: Any):
        self.network = network
        self.scale, self.noise = _as_law("scale", scale), _as_law("noise", noise)

    def condition(self, x: AnyArray, y: AnyArray) -> IndependentConditioned:
        """Return the process given observations.

        Args:
            x: Inputs, shape `(rows, features)` or `(rows, *spatial, channels)`.
            y: Observations, shape `(rows,)`, or `(rows, outputs)` which share v and s2.

        Raises:
            ValueError: If shapes do not fit or numbers are not finite.
        """
        x, y = jnp.asarray(x), _check_targets(x, y)
        kernel = self.network.nngp(x)
        y = y.astype(kernel.dtype)
        known, nodes = _fitted(self, kernel, y.reshape(len(y), -1))
        return IndependentConditioned(self, x, y, known, nodes)

    def log_evidence(self, x: AnyArray, y: AnyArray) -> Scalar:
        """Return `log p(y)`, to differentiate by the network's and the laws' parameters.

        Gradients are right also where eigenvalues of the kernel coincide; there second
        derivatives are NaN.

        Args:
            x: Inputs, shape `(rows, features)` or `(rows, *spatial, channels)`.
            y: Observations, shape `(rows,)` or `(rows, outputs)`.
        """
        x, y = jnp.asarray(x), _check_targets(x, y)
        kernel = self.network.nngp(x)
        nodes = _fitted(self, kernel, y.astype(kernel.dtype).reshape(len(y), -1))[1]
        return logsumexp(nodes.log_weights)


class TwoScales(eqx.Module):
    """The posterior of v and s2 as weighted points.

    Attributes:
        log_scales: log v, shape `(node, scale)`.
        log_ratios: log(s2 / v), shape `(node,)`.
        log_weights: In nats; their sum on the linear scale is the evidence.
    """

    log_scales: Float[Array, "node scale"]
    log_ratios: Float[Array, " node"]
    log_weights: Float[Array, "node scale"]

    def expectation(self, function: Callable[[Array, Array], Array]) -> Scalar:
        """Return the posterior mean of a function; it is for the caller to know it exists.

        Args:
            function: Of arrays of v and of s2, elementwise.
        """
        weights = jnp.exp(self.log_weights - logsumexp(self.log_weights))
        noises = jnp.exp(self.log_scales + self.log_ratios[:, None])
        return jnp.sum(weights * function(jnp.exp(self.log_scales), noises))


class IndependentConditioned(eqx.Module):
    """An `IndependentNoise` given observations; `condition` adds more of them.

    Attributes:
        process: What was conditioned.
        x: Inputs.
        y: Observations, shape `(rows,)` or `(rows, outputs)`.
        spectrum: Of the kernel matrix of the inputs.
        scales: Posterior of v and s2.
    """

    process: IndependentNoise
    x: Array
    y: Array
    spectrum: Spectrum
    scales: TwoScales

    @property
    def log_evidence(self) -> Scalar:
        """Log density of the observations, in nats."""
        return logsumexp(self.scales.log_weights)

    def log_posterior(self, scale: AnyArray, noise: AnyArray) -> Array:
        """Return the log density of v and s2 given the observations, in nats.

        Args:
            scale: v, any shape.
            noise: s2, of that shape.

        Raises:
            ValueError: If one of them is known, and so has no density.
        """
        process = self.process
        if isinstance(process.scale, PointMass) or isinstance(process.noise, PointMass):
            raise ValueError("A scale that is known has no density; see `scales`.")
        scale, noise = jnp.asarray(scale), jnp.asarray(noise)
        prior = _log_density(process.scale, scale) + _log_density(process.noise, noise)
        ratios = (jnp.log(noise) - jnp.log(scale)).reshape(-1)
        values = self.spectrum.values + jnp.exp(ratios)[:, None]
        columns = self._columns
        squares = jnp.sum((self.spectrum.vectors.T @ columns) ** 2, axis=1)
        quadratic = jnp.sum(squares / values, axis=1)
        log_det = jnp.sum(jnp.log(values), axis=1)
        found = _log_likelihood(
            jnp.log(scale).reshape(-1, 1), quadratic, log_det, columns.shape
        )
        return prior + found.reshape(scale.shape) - self.log_evidence

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know before trusting it, in words; empty if nothing."""
        said = [
            r for r in remarks_on(self.x, 0.0, float(self._tail(True))) if "repeat" not in r
        ]
        values = self.spectrum.values
        if float(jnp.std(values)) < 0.1 * float(jnp.mean(values)):
            said.append(
                "The kernel is nearly a multiple of the identity: the observations do not tell "
                "scale and noise apart, only the priors do."
            )
        return tuple(said)

    def latent(self, x: AnyArray) -> NormalMixture:
        """Return the law of the function at new inputs, without noise.

        The density of very many points at once is less exact than of few: it speaks of
        v and s2 where the nodes, which are those for the observations, are few.

        Args:
            x: Inputs at which to predict.

        Returns:
            A distribution of shape `(points,)`; with several outputs `(outputs * points,)`,
            the points of the first output first.
        """
        return self._predict(x, False)

    def observation(self, x: AnyArray) -> NormalMixture:
        """Return the law of new observations, noise included.

        Args:
            x: Inputs at which to predict.

        Returns:
            As `latent`.
        """
        return self._predict(x, True)

    def latent_marginals(self, x: AnyArray) -> NormalMixtureMarginals:
        """Return the law of each value of the function by itself: `latent`, for many points.

        Args:
            x: Inputs at which to predict.

        Returns:
            A distribution of batch shape `(points,)`, or `(points, outputs)`.
        """
        return self._predict_each(x, False)

    def observation_marginals(self, x: AnyArray) -> NormalMixtureMarginals:
        """Return the law of each new observation by itself: `observation`, for many points.

        Args:
            x: Inputs at which to predict.

        Returns:
            As `latent_marginals`.
        """
        return self._predict_each(x, True)

    def condition(self, x: AnyArray, y: AnyArray) -> IndependentConditioned:
        """Return the process given more observations; it is decomposed anew.

        Args:
            x: New inputs.
            y: New observations, with as many outputs as before.

        Raises:
            ValueError: As `IndependentNoise.condition`, or if the outputs differ in number.
        """
        x, y = jnp.asarray(x), _check_targets(x, y)
        if y.shape[1:] != self.y.shape[1:]:
            raise ValueError(
                f"`y` must have the outputs of the earlier ones, shape {self.y.shape[1:]} "
                f"per row; got {y.shape[1:]}."
            )
        return self.process.condition(
            jnp.concatenate([self.x, x]), jnp.concatenate([self.y, y.astype(self.y.dtype)])
        )

    @property
    def _columns(self) -> Array:
        return self.y.reshape(len(self.y), -1)

    def _tail(self, noisy: bool) -> Scalar:
        order = self.process.scale.tail()
        if noisy:
            order = jnp.minimum(order, self.process.noise.tail())
        return order + self.y.size / 2

    def _read(self, x):
        """Return what reads the rows, in the eigenbasis, and locations by node."""
        read = self.spectrum.vectors.T @ self.process.network.nngp(self.x, x)
        values = self.spectrum.values + jnp.exp(self.scales.log_ratios)[:, None]
        inside = (self.spectrum.vectors.T @ self._columns) / values[:, :, None]
        return read, values, jnp.einsum("im,kic->kcm", read, inside)

    def _predict(self, x: AnyArray, noisy: bool) -> NormalMixture:
        read, values, locs = self._read(x)
        network = self.process.network
        own, before = network.nngp(x), network.diagonal(x).nngp
        outputs = locs.shape[1]
        noises = jnp.exp(self.scales.log_ratios) * noisy

        def factor(part):
            node, noise = part
            tril = whitened_covariance(own - read.T @ (read / node[:, None]), noise, before)
            return jnp.kron(jnp.eye(outputs, dtype=tril.dtype), tril) if outputs > 1 else tril

        trils = jax.lax.map(factor, (values, noises))
        locs = locs.reshape(len(locs), -1)
        return NormalMixture(
            locs, trils, self.scales.log_scales, self.scales.log_weights, self._tail(noisy)
        )

    def _predict_each(self, x: AnyArray, noisy: bool) -> NormalMixtureMarginals:
        read, values, locs = self._read(x)
        before = self.process.network.diagonal(x).nngp
        gone = jax.lax.map(lambda node: jnp.sum(read**2 / node[:, None], axis=0), values)
        rounding = 10 * len(values[0]) * jnp.finfo(before.dtype).eps * before
        noises = jnp.exp(self.scales.log_ratios)[:, None] * noisy
        scales = jnp.sqrt(jnp.maximum(before - gone, rounding) + noises)[:, :, None]
        shape = (len(locs), -1, *self.y.shape[1:])
        locs = jnp.swapaxes(locs, 1, 2)
        scales = jnp.broadcast_to(scales, locs.shape)
        return NormalMixtureMarginals(
            locs.reshape(shape),
            scales.reshape(shape),
            self.scales.log_scales,
            self.scales.log_weights,
            self._tail(noisy),
        )


def _as_law(name: str, law: Any) -> AbstractLaw:
    if isinstance(law, dist.Distribution):
        return FromDistribution(law)
    if isinstance(law, AbstractDensityLaw | InverseGamma | PointMass):
        return law
    if isinstance(law, AbstractLaw):
        raise ValueError(
            f"`{name}` must be a law with a density, or a known number; got "
            f"{type(law).__name__}, which is improper or known by draws only."
        )
    if isinstance(law, float | int) and not 0 < law < float("inf"):
        raise ValueError(f"`{name}` must be finite and above 0; got {law}.")
    return PointMass(law)


def _log_density(law: AbstractLaw, scale: Array) -> Array:
    if isinstance(law, AbstractDensityLaw):
        return law.log_density(scale)
    zero = jnp.zeros((), jnp.result_type(scale))
    return jnp.asarray(law.posterior(0, zero).log_prob(scale))


def _of_log(law: AbstractLaw, log_scale: Array) -> Array:
    """Return the density of the logarithm of a scale."""
    found = _log_density(law, jnp.exp(log_scale)) + log_scale
    return jnp.where(jnp.isnan(found), -jnp.inf, found)


def _log_likelihood(log_scales, quadratic, log_det, shape):
    """Return the log density of the observations, `(node, scale)`."""
    rows, outputs = shape
    normal = -rows * outputs / 2 * (jnp.log(2 * jnp.pi) + log_scales)
    spread = outputs / 2 * log_det + quadratic / 2 * jnp.exp(-log_scales.T)
    return normal - spread.T


@eqx.filter_jit
def _fitted(process: IndependentNoise, kernel: Array, y: Array) -> tuple[Spectrum, TwoScales]:
    known = jax.lax.stop_gradient(spectrum(kernel))
    fixed = jax.tree.map(lambda v: jax.lax.stop_gradient(v) if eqx.is_array(v) else v, process)
    outer, inner, log_widths = _nodes(fixed, jax.lax.stop_gradient(y), known)
    log_scales, log_ratios, log_prior = _place(process, outer, inner)
    quadratic, log_det = statistics(kernel, y, log_ratios, known)
    found = _log_likelihood(log_scales, quadratic, log_det, y.shape)
    return known, TwoScales(log_scales, log_ratios, log_prior + found + log_widths)


def _place(process: IndependentNoise, outer: Array, inner: Array):
    """Return log v, log(s2 / v) and the log prior density of nodes.

    With two laws `outer` is log(s2 / v) and `inner` log v; with one, `outer` is its logarithm.
    """
    known_scale, known_noise = _known(process.scale), _known(process.noise)
    zero = jnp.zeros_like(inner)
    if known_noise is None and known_scale is None:
        prior = _of_log(process.scale, inner)
        return inner, outer, prior + _of_log(process.noise, outer[:, None] + inner)
    if known_noise is None:
        prior = _of_log(process.noise, outer[:, None] + zero)
        return known_scale + zero, outer - known_scale, prior
    if known_scale is None:
        log_scales = outer[:, None] + zero
        return log_scales, known_noise - outer, _of_log(process.scale, log_scales)
    return known_scale + zero, known_noise - known_scale + 0 * outer, zero


def _known(law: AbstractLaw) -> Array | None:
    return jnp.log(law.value) if isinstance(law, PointMass) else None


def _nodes(process: IndependentNoise, y: Array, known: Spectrum):
    """Return outer and inner coordinates of nodes and the logarithms of their widths."""
    laws = [not isinstance(law, PointMass) for law in (process.scale, process.noise)]
    dtype = known.values.dtype
    none = jnp.zeros((1,), dtype), jnp.zeros((1,), dtype)
    if not any(laws):
        return none[0], none[0][:, None], none[0][:, None]
    squares = jnp.sum((known.vectors.T @ y) ** 2, axis=1)
    typical = jnp.log(jnp.mean(known.values))
    height = jnp.log(jnp.sum(squares) / y.size + jnp.finfo(dtype).tiny)

    def density(outer, inner):
        log_scales, log_ratios, log_prior = _place(process, outer[None], inner[None])
        values = known.values + jnp.exp(log_ratios)
        quadratic, log_det = jnp.sum(squares / values), jnp.sum(jnp.log(values))
        return (log_prior + _log_likelihood(log_scales, quadratic, log_det, y.shape))[0]

    def inner_nodes(outer):
        if not all(laws):
            return none
        values = known.values + jnp.exp(outer)
        centre = jnp.log(jnp.sum(squares / values) / y.size + jnp.finfo(dtype).tiny)
        quadratic, log_det = jnp.sum(squares / values), jnp.sum(jnp.log(values))

        def of_scale(log_scale):
            inner = log_scale[None, None]
            prior = _place(process, outer[None], inner)[2]
            found = _log_likelihood(inner, quadratic, log_det, y.shape)
            return (prior + found)[0, 0]

        return nodes_on_line(of_scale, log_grid(centre), NUM_INNER)

    def integrated(outer):
        inner, log_widths = inner_nodes(outer)
        return logsumexp(density(outer, inner) + log_widths)

    centre = typical if all(laws) else height - (typical if laws[0] else 0)
    outer, outer_widths = nodes_on_line(integrated, log_grid(centre), NUM_OUTER)
    inner, inner_widths = jax.vmap(inner_nodes)(outer)
    return outer, inner, inner_widths + outer_widths[:, None]
