"""Laws of the scale without closed forms: by quadrature of a density, or by draws."""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaincc
from jaxtyping import Array, Float

from ....core._convert import part
from ....core._types import PRNGKey, Scalar
from .._parameter import Number, Parameter, parameter
from ._abstract_law import AbstractDensityLaw, AbstractLaw
from ._normal_scale_mixture import NormalScaleMixture, ScaleMixtureMarginals
from ._quadrature import Nodes, importance, log_likelihood, quadrature


class BurrXII(AbstractDensityLaw):
    """`c d v^(c - 1) (1 + v^c)^(-d - 1)`, tail index `c d`.

    Args:
        c: First shape.
        d: Second shape.
    """

    c: Parameter
    d: Parameter

    def __init__(self, c: Number, d: Number):
        self.c, self.d = parameter("c", c), parameter("d", d)

    def log_density(self, scale: Array) -> Array:
        log = jnp.log(scale)
        body = jnp.logaddexp(0, self.c * log)
        return jnp.log(self.c * self.d) + (self.c - 1) * log - (self.d + 1) * body

    def tail(self) -> Scalar:
        return self.c * self.d


class HalfCauchy(AbstractDensityLaw):
    """A half Cauchy law of the root of v.

    Args:
        scale: Median of the root of v.
    """

    scale: Parameter

    def __init__(self, scale: Number):
        self.scale = parameter("scale", scale)

    def log_density(self, scale: Array) -> Array:
        log = jnp.log(scale)
        body = jnp.logaddexp(0, log - 2 * jnp.log(self.scale))
        return -jnp.log(jnp.pi * self.scale) - log / 2 - body

    def tail(self) -> Scalar:
        """Return 1/2: before any observation v has no mean."""
        return jnp.asarray(0.5)


class GIG(AbstractDensityLaw):
    """Generalised inverse Gaussian, `v^(order - 1) exp(-(chi / v + psi v) / 2)`.

    The process is generalised hyperbolic. The constant is by quadrature: JAX has no Bessel
    function of real order.

    Args:
        order: Any number.
        chi: Positive; keeps v from zero.
        psi: Positive; keeps v from infinity.
    """

    order: Parameter
    chi: Parameter
    psi: Parameter

    def __init__(self, order: Number, chi: Number, psi: Number):
        self.order = parameter("order", order, real=True)
        self.chi, self.psi = parameter("chi", chi), parameter("psi", psi)

    def _kernel(self, scale: Array) -> Array:
        body = (self.chi / scale + self.psi * scale) / 2
        return (self.order - 1) * jnp.log(scale) - body

    def log_density(self, scale: Array) -> Array:
        constant = quadrature(self._kernel, 0, jnp.zeros(())).log_integral
        return self._kernel(scale) - constant

    def tail(self) -> Scalar:
        """Return infinity: all moments exist."""
        return jnp.asarray(jnp.inf)


class FromDistribution(AbstractDensityLaw):
    """A numpyro distribution on the positive numbers, smooth and with one mode in log v.

    How heavy its tail is cannot be asked of it: moments are reported as if all existed,
    unless `order` says otherwise.

    Args:
        distribution: With scalar draws.
        order: Order below which its moments exist.
    """

    distribution: dist.Distribution
    order: Float[Array, ""]

    def __init__(
        self, distribution: dist.Distribution, order: float | int | Array = float("inf")
    ):
        if distribution.batch_shape or distribution.event_shape:
            raise ValueError(
                "`distribution` must be of one number; got batch shape "
                f"{distribution.batch_shape} and event shape {distribution.event_shape}."
            )
        self.distribution = distribution
        self.order = jnp.asarray(order, float)

    def log_density(self, scale: Array) -> Array:
        support: Any = self.distribution.support
        inside = support(scale)
        return jnp.where(inside, self.distribution.log_prob(scale), -jnp.inf)

    def tail(self) -> Scalar:
        return self.order


def scale_law(scale: Any) -> AbstractLaw:
    """Return the law of the scale that an argument of that name says."""
    if isinstance(scale, dist.Distribution):
        return FromDistribution(scale)
    return part("scale", AbstractLaw)(scale)


class Draws(AbstractLaw):
    """A law known by draws only: they are weighted by the likelihood.

    Weights degenerate as observations become many (their effective number falls like
    `n^(-1/2)`); look at `nodes(size, quadratic).khat`. Moments are those of the draws.

    Args:
        values: Draws of v, shape `(draw,)`, positive.
    """

    values: Float[Array, " draw"]

    def nodes(self, size: int, quadratic: Scalar) -> Nodes:
        """Return the posterior of v as weighted points.

        Args:
            size: n, number of observations.
            quadratic: q, their whitened sum of squares.
        """
        log = jnp.log(self.values)
        return Nodes(log, log_likelihood(log, size, quadratic) - jnp.log(len(self.values)))

    def log_integral(self, size: int, quadratic: Scalar) -> Scalar:
        return self.nodes(size, quadratic).log_integral

    def posterior(self, size: int, quadratic: Scalar) -> dist.Distribution:
        nodes = self.nodes(size, quadratic)
        weights = dist.CategoricalLogits(nodes.log_weights)
        return dist.MixtureSameFamily(weights, dist.Delta(self.values))

    def mixture(
        self, size: int, quadratic: Scalar, loc: Array, scale_tril: Array
    ) -> NormalScaleMixture:
        nodes = self.nodes(size, quadratic)
        return NormalScaleMixture(loc, scale_tril, nodes.log_scales, nodes.log_weights)

    def marginals(
        self, size: int, quadratic: Scalar, loc: Array, scale: Array
    ) -> ScaleMixtureMarginals:
        nodes = self.nodes(size, quadratic)
        return ScaleMixtureMarginals(loc, scale, nodes.log_scales, nodes.log_weights)

    def exceedance(self, size: int, quadratic: Scalar) -> Scalar:
        return jnp.mean(gammaincc(size / 2, quadratic / (2 * self.values)))

    def tail(self) -> Scalar:
        """Return infinity: draws are finitely many."""
        return jnp.asarray(jnp.inf)


def importance_nodes(
    law: AbstractDensityLaw,
    size: int,
    quadratic: Scalar,
    *,
    key: PRNGKey,
    num_draws: int = 1000,
) -> Nodes:
    """Return the posterior of v by importance sampling, a check of the quadrature.

    Args:
        law: Law of v.
        size: n, number of observations.
        quadratic: q, their whitened sum of squares.
        key: Random key.
        num_draws: Number of draws.
    """
    return importance(law.log_density, size, quadratic, key=key, num_draws=num_draws)
