"""Integrals over the two scales of a process with noise: its own, v, and the noise's, s2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from ....core._types import Scalar
from .._parameter import parameter
from ..laws._abstract_law import AbstractDensityLaw, AbstractLaw, pieces
from ..laws._closed_form import InverseGamma, PointMass
from ..laws._numerical import FromDistribution
from ..laws._peak_nodes import log_grid, nodes_on_line
from ._spectrum import Spectrum, spectrum, statistics

NUM_OUTER, NUM_INNER = 65, 49  # nodes of log(s2 / v), and of log v for each

Laws = tuple[AbstractLaw, AbstractLaw]  # of v and of s2


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


def as_law(name: str, law: Any) -> AbstractLaw:
    """Return a law with a density, or a known number."""
    if isinstance(law, dist.Distribution):
        law = FromDistribution(law)
    if isinstance(law, AbstractDensityLaw):
        ends = pieces(law)
        if isinstance(ends.high, Tracer) or len(ends.low) > 1 or jnp.isfinite(ends.high)[0]:
            raise ValueError(
                f"`{name}` must have one peak and no upper edge, as `LogNormal`, `HalfNormal` "
                "and `Gamma` do, to be integrated over together with another scale; got "
                f"{type(getattr(law, 'distribution', law)).__name__}."
            )
    if isinstance(law, AbstractDensityLaw | InverseGamma | PointMass):
        return law
    if isinstance(law, AbstractLaw):
        raise ValueError(
            f"`{name}` must be a law with a density, or a known number; got "
            f"{type(law).__name__}, which is improper or known by draws only."
        )
    return PointMass(parameter(name, law))


def log_density(law: AbstractLaw, scale: Array) -> Array:
    """Return the log density of a scale, in nats."""
    if isinstance(law, AbstractDensityLaw):
        return law.log_density(scale)
    zero = jnp.zeros((), jnp.result_type(scale))
    return jnp.asarray(law.posterior(0, zero).log_prob(scale))


def _of_log(law: AbstractLaw, log_scale: Array) -> Array:
    """Return the density of the logarithm of a scale."""
    found = log_density(law, jnp.exp(log_scale)) + log_scale
    return jnp.where(jnp.isnan(found), -jnp.inf, found)


def log_density_of_data(log_scales, quadratic, log_det, shape):
    """Return the log density of the observations, `(node, scale)`."""
    rows, outputs = shape
    normal = -rows * outputs / 2 * (jnp.log(2 * jnp.pi) + log_scales)
    spread = outputs / 2 * log_det + quadratic / 2 * jnp.exp(-log_scales.T)
    return normal - spread.T


@eqx.filter_jit
def fitted(laws: Laws, kernel: Array, y: Array) -> tuple[Spectrum, TwoScales]:
    """Return the spectrum of a kernel matrix, and the posterior of both scales."""
    known = jax.lax.stop_gradient(spectrum(kernel))
    fixed = jax.tree.map(lambda v: jax.lax.stop_gradient(v) if eqx.is_array(v) else v, laws)
    outer, inner, log_widths = _nodes(fixed, jax.lax.stop_gradient(y), known)
    log_scales, log_ratios, log_prior = _place(laws, outer, inner)
    quadratic, log_det = statistics(kernel, y, log_ratios, known)
    found = log_density_of_data(log_scales, quadratic, log_det, y.shape)
    return known, TwoScales(log_scales, log_ratios, log_prior + found + log_widths)


def _place(laws: Laws, outer: Array, inner: Array):
    """Return log v, log(s2 / v) and the log prior density of nodes.

    With two laws `outer` is log(s2 / v) and `inner` log v; with one, `outer` is its logarithm.
    """
    scale, noise = laws
    known_scale, known_noise = _log_if_known(scale), _log_if_known(noise)
    zero = jnp.zeros_like(inner)
    column = outer[:, None] + zero
    if known_scale is None:
        if known_noise is None:
            prior = _of_log(scale, inner) + _of_log(noise, outer[:, None] + inner)
            return inner, outer, prior
        return column, known_noise - outer, _of_log(scale, column)
    if known_noise is None:
        return known_scale + zero, outer - known_scale, _of_log(noise, column)
    return known_scale + zero, known_noise - known_scale + 0 * outer, zero


def _log_if_known(law: AbstractLaw) -> Array | None:
    return jnp.log(law.value) if isinstance(law, PointMass) else None


def _nodes(laws: Laws, y: Array, known: Spectrum):
    """Return outer and inner coordinates of nodes and the logarithms of their widths."""
    free = [not isinstance(law, PointMass) for law in laws]
    dtype = known.values.dtype
    none = jnp.zeros((1,), dtype), jnp.zeros((1,), dtype)
    if not any(free):
        return none[0], none[0][:, None], none[0][:, None]
    squares = jnp.sum((known.vectors.T @ y) ** 2, axis=1)
    typical = jnp.log(jnp.mean(known.values))
    height = jnp.log(jnp.sum(squares) / y.size + jnp.finfo(dtype).tiny)

    def density(outer, inner):
        log_scales, log_ratios, log_prior = _place(laws, outer[None], inner[None])
        values = known.values + jnp.exp(log_ratios)
        quadratic, log_det = jnp.sum(squares / values), jnp.sum(jnp.log(values))
        return (log_prior + log_density_of_data(log_scales, quadratic, log_det, y.shape))[0]

    def inner_nodes(outer):
        if not all(free):
            return none
        values = known.values + jnp.exp(outer)
        centre = jnp.log(jnp.sum(squares / values) / y.size + jnp.finfo(dtype).tiny)
        quadratic, log_det = jnp.sum(squares / values), jnp.sum(jnp.log(values))

        def of_scale(log_scale):
            inner = log_scale[None, None]
            prior = _place(laws, outer[None], inner)[2]
            found = log_density_of_data(inner, quadratic, log_det, y.shape)
            return (prior + found)[0, 0]

        return nodes_on_line(of_scale, log_grid(centre), NUM_INNER)

    def integrated(outer):
        inner, log_widths = inner_nodes(outer)
        return logsumexp(density(outer, inner) + log_widths)

    centre = typical if all(free) else height - (typical if free[0] else 0)
    outer, outer_widths = nodes_on_line(integrated, log_grid(centre), NUM_OUTER)
    inner, inner_widths = jax.vmap(inner_nodes)(outer)
    return outer, inner, inner_widths + outer_widths[:, None]
