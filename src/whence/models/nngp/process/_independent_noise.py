"""Noise of a variance of its own: the process mixed over two scales, v and s2."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.scipy.special import logsumexp
from jaxtyping import Array

from ....core._convert import part, whole
from ....core._key import seeded
from ....core._types import AnyArray, PRNGKey, Scalar
from .._precision import NATS, check_evidence, is_single, resolved
from ..laws._abstract_law import AbstractLaw
from ..laws._closed_form import PointMass
from ..laws._normal_mixture import NormalMixture, NormalMixtureMarginals
from ..network._abstract_layer import AbstractLayer
from ._abstract_conditioned import AbstractConditioned
from ._cholesky import whitened_covariance
from ._remarks import remarks_on_inputs, remarks_on_moments, remarks_on_targets
from ._scale_and_noise import TwoScales, as_law, fitted, log_density, log_density_of_data
from ._scale_mixture import check_targets, repeated
from ._spectrum import Spectrum


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
        self.network = part("network", AbstractLayer)(network)
        self.scale, self.noise = as_law("scale", scale), as_law("noise", noise)

    def condition(self, x: AnyArray, y: AnyArray) -> IndependentConditioned:
        """Return the process given observations.

        Args:
            x: Inputs, shape `(rows, features)` or `(rows, *spatial, channels)`.
            y: Observations, shape `(rows,)`, or `(rows, outputs)` which share v and s2.

        Raises:
            ValueError: If shapes do not fit, numbers are not finite, or float32 is not enough.
        """
        x, y, known, nodes = self._fitted(x, y)
        check_evidence(_lost_nats(known, nodes, y))
        return IndependentConditioned(self, x, y, known, nodes)

    def _fitted(self, x: AnyArray, y: AnyArray) -> tuple[Array, Array, Spectrum, TwoScales]:
        kernel, y = self.network.nngp(x), check_targets(x, y)
        y = y.astype(kernel.dtype)
        laws = self.scale, self.noise
        return jnp.asarray(x), y, *fitted(laws, kernel, y.reshape(len(y), -1))

    def log_evidence(self, x: AnyArray, y: AnyArray) -> Scalar:
        """Return `log p(y)`, to differentiate by the network's and the laws' parameters.

        Gradients are right also where eigenvalues of the kernel coincide; there second
        derivatives are NaN. Minus infinity where float32 is not enough.

        Args:
            x: Inputs, shape `(rows, features)` or `(rows, *spatial, channels)`.
            y: Observations, shape `(rows,)` or `(rows, outputs)`.
        """
        _, y, known, nodes = self._fitted(x, y)
        found = logsumexp(nodes.log_weights)
        if not is_single(known.values.dtype):
            return found
        return jnp.where(_lost_nats(known, nodes, y) <= NATS, found, -jnp.inf)


def _lost_nats(known: Spectrum, nodes: TwoScales, y: Array) -> Array:
    """Return by how much rounding moves the log evidence; the matrix is known to `eps |K|`."""
    values = known.values + jnp.exp(nodes.log_ratios)[:, None]
    weights = (known.vectors.T @ y.reshape(len(y), -1)) / values[:, :, None]
    each = jnp.sum(weights**2, axis=(1, 2))[:, None] * jnp.exp(-nodes.log_scales)
    share = jax.nn.softmax(nodes.log_weights.reshape(-1))
    rounding = jnp.finfo(known.values.dtype).eps * jnp.max(known.values)
    lost = rounding * jnp.sum(share * each.reshape(-1)) / 2
    # Eigenvalues below rounding were raised to it, which is noise that nobody asked for.
    least = len(known.values) * rounding
    ratio = jnp.exp(jax.nn.softmax(logsumexp(nodes.log_weights, axis=1)) @ nodes.log_ratios)
    raised = (jnp.min(known.values) < 1.001 * least) & (ratio < 10 * least)
    return jax.lax.stop_gradient(jnp.where(raised, jnp.inf, lost).astype(known.values.dtype))


class IndependentConditioned(AbstractConditioned):
    """An `IndependentNoise` given observations: a `whence.core.Conditioned`.

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
        prior = log_density(process.scale, scale) + log_density(process.noise, noise)
        ratios = (jnp.log(noise) - jnp.log(scale)).reshape(-1)
        values = self.spectrum.values + jnp.exp(ratios)[:, None]
        columns = self._columns
        squares = jnp.sum((self.spectrum.vectors.T @ columns) ** 2, axis=1)
        quadratic = jnp.sum(squares / values, axis=1)
        log_det = jnp.sum(jnp.log(values), axis=1)
        found = log_density_of_data(
            jnp.log(scale).reshape(-1, 1), quadratic, log_det, columns.shape
        )
        return prior + found.reshape(scale.shape) - self.log_evidence

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know before trusting it, in words; empty if nothing."""
        said = [
            *remarks_on_inputs(self.x),
            *remarks_on_targets(self.y, float(self.log_evidence)),
            *remarks_on_moments(float(self._tail(True))),
        ]
        values = self.spectrum.values
        if float(jnp.std(values)) < 0.1 * float(jnp.mean(values)):
            said.append(
                "The kernel is nearly a multiple of the identity: the observations do not tell "
                "scale and noise apart, only the priors do."
            )
        return tuple(said)

    def condition(self, x: AnyArray, y: AnyArray) -> IndependentConditioned:
        """Return the process given more observations; it is decomposed anew.

        Raises:
            ValueError: As `IndependentNoise.condition`, or if the outputs differ in number.
        """
        x, y = jnp.asarray(x), check_targets(x, y, self.y)
        return self.process.condition(
            jnp.concatenate([self.x, x]), jnp.concatenate([self.y, y.astype(self.y.dtype)])
        )

    @seeded
    def sample(self, x: AnyArray, *, key: PRNGKey, draws: int = 1) -> dict[str, Array]:
        """Draw scale and noise from the nodes of the quadrature and, given them, the function.

        Args:
            x: Inputs of the function.
            key: A typed key.
            draws: Number of draws.

        Returns:
            `scale` and `noise`, shape `(draw,)`, and `latent`, shape `(draw, point)` or
            `(draw, point, output)`.
        """
        draws = whole("draws", least=1)(draws)
        latent, node, scale = self._predict(x, False).sample_with_scale(key, (draws,))
        outputs = self._columns.shape[1]
        latent = jnp.swapaxes(latent.reshape(draws, outputs, -1), 1, 2)
        return {
            "scale": scale,
            "noise": scale * jnp.exp(self.scales.log_ratios[node]),
            "latent": latent.reshape(draws, -1, *self.y.shape[1:]),
        }

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

    def _resolved(self, read: Array, values: Array, before: Array, noises: Array) -> None:
        """Refuse what float32 does not resolve at the likeliest node, unless compiled."""
        if isinstance(read, Tracer) or not is_single(read.dtype):
            return
        node = jnp.argmax(logsumexp(self.scales.log_weights, axis=1))
        inverse = jnp.exp(-self.scales.log_scales[node])
        inverse = jnp.sum(jax.nn.softmax(self.scales.log_weights[node]) * inverse)
        of_point = read / values[node][:, None]
        weights = (self.spectrum.vectors.T @ self._columns) / values[node][:, None]
        rounding = jnp.finfo(read.dtype).eps * jnp.max(before)
        left = jnp.maximum(before - jnp.sum(read * of_point, axis=0), rounding)
        rounding = jnp.finfo(read.dtype).eps * jnp.max(self.spectrum.values)
        resolved(left + noises[node], rounding, of_point, weights, inverse)

    def _predict(self, x: AnyArray, noisy: bool) -> NormalMixture:
        read, values, locs = self._read(x)
        network = self.process.network
        own, before = network.nngp(x), network.diagonal(x).nngp
        outputs = locs.shape[1]
        noises = jnp.exp(self.scales.log_ratios) * noisy
        self._resolved(read, values, before, noises)

        def factor(part):
            node, noise = part
            tril = whitened_covariance(own - read.T @ (read / node[:, None]), noise, before)
            return repeated(tril, outputs)

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
        noises = jnp.exp(self.scales.log_ratios) * noisy
        self._resolved(read, values, before, noises)
        scales = jnp.sqrt(jnp.maximum(before - gone, rounding) + noises[:, None])[:, :, None]
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
