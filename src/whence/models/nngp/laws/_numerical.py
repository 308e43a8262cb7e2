"""Laws of the scale without closed forms: by quadrature of a density, or by draws."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jax.scipy.special import gammaincc
from jaxtyping import Array, Float

from ....core._convert import part
from ....core._types import PRNGKey, Scalar
from .._parameter import Number, Parameter, check_prior, parameter, scalar
from ._abstract_law import AbstractDensityLaw, AbstractLaw, pieces
from ._normal_scale_mixture import NormalScaleMixture, ScaleMixtureMarginals
from ._pieces import Pieces, inside, one_piece, pieces_of, tail_order
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
        constant = quadrature(one_piece(self._kernel), 0, jnp.zeros(())).log_integral
        return self._kernel(scale) - constant

    def tail(self) -> Scalar:
        """Return infinity: all moments exist."""
        return jnp.asarray(jnp.inf)


class FromDistribution(AbstractDensityLaw):
    """A numpyro distribution on the positive numbers.

    Edges of the support are integrated up to, and components of a `MixtureSameFamily` or
    `MixtureGeneral` one by one; apart from that its density must be smooth, with one peak in
    log v. That it integrates to 1 is checked where its numbers are known.

    Args:
        distribution: With scalar draws.
        order: Order below which its moments exist; None to tell from the density.
    """

    distribution: dist.Distribution
    order: Float[Array, ""] | None

    def __init__(self, distribution: dist.Distribution, order: Any = None):
        self.distribution = check_prior("distribution", distribution)
        self.order = None if order is None else _order(order)
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(distribution)):
            self._check_mass()

    def _check_mass(self) -> None:
        with jax.ensure_compile_time_eval():
            mass = float(jnp.exp(self.log_integral(0, jnp.zeros(()))))
        tolerance = 1e-6 if jnp.result_type(float) == jnp.float64 else 1e-3
        if not abs(mass - 1) <= tolerance:
            raise ValueError(
                "`distribution` must have a density on the positive numbers, with one peak in "
                f"log v; of {type(self.distribution).__name__} the quadrature finds a mass of "
                f"{mass:.6g} in place of 1. Give a law of several peaks as a `MixtureGeneral`, "
                "or take `Draws` of it."
            )

    def log_density(self, scale: Array) -> Array:
        return jnp.vectorize(lambda v: inside(self.distribution, v))(scale)

    def tail(self) -> Scalar:
        if self.order is not None:
            return self.order
        nodes = self.nodes(0, jnp.zeros(()))
        centre = nodes.log_scales[jnp.argmax(nodes.log_weights)]
        return jax.lax.stop_gradient(tail_order(self.log_density, centre))


@pieces.register
def _(law: FromDistribution) -> Pieces:
    return pieces_of(law.distribution)


def _order(order: Any) -> Array:
    infinite = not isinstance(order, Tracer) and np.ndim(order) == 0 and order == np.inf
    return jnp.asarray(jnp.inf) if infinite else scalar("order", order, least=0)


def scale_law(scale: Any) -> AbstractLaw:
    """Return the law of the scale that an argument of that name says."""
    if isinstance(scale, dist.Distribution):
        return FromDistribution(scale)
    return part("scale", AbstractLaw)(scale)


def _as_draws(values: Any) -> Any:
    if isinstance(values, jax.Array | jax.ShapeDtypeStruct):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"`values` must be numbers; got {values!r}.")
    return jnp.asarray(array, float)


class Draws(AbstractLaw):
    """A law known by draws only: they are weighted by the likelihood.

    Weights degenerate as observations become many (their effective number falls like
    `n^(-1/2)`); look at `nodes(size, quadratic).khat`. Moments are those of the draws.

    Args:
        values: Draws of v, shape `(draw,)`, positive.
    """

    values: Float[Array, " draw"] = eqx.field(converter=_as_draws)

    def __check_init__(self):
        if self.values.ndim != 1 or not self.values.size:
            raise ValueError(f"`values` must have shape (draw,); got {self.values.shape}.")
        if not isinstance(self.values, Tracer | jax.ShapeDtypeStruct):
            known = np.asarray(self.values)
            bad = ~(np.isfinite(known) & (known > 0))
            if bad.any():
                raise ValueError(f"`values` must be positive and finite; got {known[bad][0]}.")

    def nodes(self, size: int, quadratic: Scalar) -> Nodes:
        """Return the posterior of v as weighted points."""
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
