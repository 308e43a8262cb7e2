"""The law of the scale v: what it gives given n observations with quadratic form q.

Observations are normal given v with covariance v A; all that a law needs of them is n, q and
the log determinant of A, so one factorisation serves every law.
"""

from __future__ import annotations

import abc
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from jax.scipy.special import gammaincc
from jaxtyping import Array
from numpyro.distributions import constraints

from ....core._types import Scalar
from ._normal_scale_mixture import NormalScaleMixture, ScaleMixtureMarginals
from ._pieces import Pieces, one_piece
from ._quadrature import Nodes, log_likelihood, quadrature


class AbstractLaw(eqx.Module):
    """A law of a positive scale v, a variance.

    In all methods `size` is n, the number of observations, and `quadratic` is q, their
    whitened sum of squares.

    References:
        Lee, Yun, Yang, Lee (2022), Scale mixtures of neural network Gaussian processes,
        arXiv:2107.01408.
    """

    @abc.abstractmethod
    def log_integral(self, size: int, quadratic: Scalar) -> Scalar:
        """Return the log of the integral of `p(v) v^(-n/2) exp(-q / (2 v))`."""

    @abc.abstractmethod
    def posterior(self, size: int, quadratic: Scalar) -> dist.Distribution:
        """Return the law of v given observations."""

    @abc.abstractmethod
    def mixture(
        self, size: int, quadratic: Scalar, loc: Array, scale_tril: Array
    ) -> dist.Distribution:
        """Return `N(loc, v L L')` mixed over the posterior of v; L is `(dim, dim)`."""

    @abc.abstractmethod
    def marginals(
        self, size: int, quadratic: Scalar, loc: Array, scale: Array
    ) -> dist.Distribution:
        """Return `N(loc, v scale^2)` mixed over the posterior of v, for arrays of numbers."""

    @abc.abstractmethod
    def exceedance(self, size: int, quadratic: Scalar) -> Scalar:
        """Return the probability, before the observations, of a larger sum of squares."""

    @abc.abstractmethod
    def tail(self) -> Scalar:
        """Return the order below which moments of v exist before any observation."""


class AbstractDensityLaw(AbstractLaw):
    """A law known by its density; integrals by quadrature."""

    @abc.abstractmethod
    def log_density(self, scale: Array) -> Array:
        """Return the log density of v, in nats, of any shape."""

    def nodes(self, size: int, quadratic: Scalar, *, num_nodes: int = 97) -> Nodes:
        """Return the posterior of v as `num_nodes` weighted points for each of its pieces."""
        # A number of observations of its own would be a program of its own.
        return _nodes(self, jnp.asarray(size, jnp.result_type(float)), quadratic, num_nodes)

    def log_integral(self, size: int, quadratic: Scalar) -> Scalar:
        return self.nodes(size, quadratic).log_integral

    def posterior(self, size: int, quadratic: Scalar) -> dist.Distribution:
        return ScalePosterior(self, size, quadratic)

    def mixture(
        self, size: int, quadratic: Scalar, loc: Array, scale_tril: Array
    ) -> NormalScaleMixture:
        nodes = self.nodes(size, quadratic)
        tail = self.tail() + size / 2
        posterior = ScalePosterior(self, size, quadratic)
        return NormalScaleMixture(
            loc, scale_tril, nodes.log_scales, nodes.log_weights, tail, posterior
        )

    def marginals(
        self, size: int, quadratic: Scalar, loc: Array, scale: Array
    ) -> ScaleMixtureMarginals:
        nodes = self.nodes(size, quadratic)
        tail = self.tail() + size / 2
        return ScaleMixtureMarginals(loc, scale, nodes.log_scales, nodes.log_weights, tail)

    def exceedance(self, size: int, quadratic: Scalar) -> Scalar:
        before = self.nodes(0, jnp.zeros_like(quadratic))
        return before.expectation(lambda v: gammaincc(size / 2, quadratic / (2 * v)))


@eqx.filter_jit
def _nodes(law: AbstractDensityLaw, size: Array, quadratic: Array, num_nodes: int) -> Nodes:
    return quadrature(pieces(law), size, quadratic, num_nodes=num_nodes)


@eqx.filter_jit
def mean_inverse(law: AbstractLaw, size: int, quadratic: Array) -> Array:
    """Return the mean of 1 / v given observations, from the slope of the log integral."""
    return -2 * jax.grad(lambda q: law.log_integral(size, q))(quadratic)


@functools.singledispatch
def pieces(law: AbstractDensityLaw) -> Pieces:
    """Return the pieces in which the density of a law is integrated; one, unless known."""
    return one_piece(law.log_density)


class ScalePosterior(dist.Distribution):
    """The posterior of a scale given observations, its law of a density; by quadrature."""

    arg_constraints = {}
    pytree_data_fields = ("law", "quadratic")
    pytree_aux_fields = ("size",)
    support = constraints.positive  # pyright: ignore[reportAssignmentType]

    def __init__(
        self, law: AbstractDensityLaw, size: int, quadratic: Any, *, validate_args=None
    ):
        self.law, self.size, self.quadratic = law, size, quadratic
        super().__init__((), (), validate_args=validate_args)

    def log_prob(self, value, intermediates=None):
        """Return the normalised log density."""
        likelihood = log_likelihood(jnp.log(value), self.size, self.quadratic)
        whole = self.law.log_integral(self.size, self.quadratic)
        return self.law.log_density(jnp.asarray(value)) + likelihood - whole

    def expectation(self, function):
        """Return the mean of an elementwise function of v; that it exists is not checked."""
        return self.law.nodes(self.size, self.quadratic).expectation(function)

    def log_ratio(self, size: int, quadratic: Array) -> Array:
        """Return the log of the mean of `v^(-m/2) exp(-r / (2 v))`.

        Args:
            size: m, number of further observations.
            quadratic: r, their whitened sum of squares, any shape.
        """
        law, more = self.law, jnp.asarray(quadratic)
        with_them = jax.vmap(lambda r: law.log_integral(self.size + size, self.quadratic + r))
        before = law.log_integral(self.size, self.quadratic)
        return with_them(more.reshape(-1)).reshape(more.shape) - before

    def sample(self, key: Any, sample_shape=()):
        """Draw by the inverse of the distribution function, tabulated at 1025 points."""
        nodes = self.law.nodes(self.size, self.quadratic, num_nodes=1025)
        order = jnp.argsort(nodes.log_scales)  # pieces may overlap
        log_scales = nodes.log_scales[order]
        weights = jax.nn.softmax(nodes.log_weights)[order]
        total = jnp.cumsum(weights) - weights / 2  # mass below the middle of each node
        uniform = jr.uniform(key, sample_shape, weights.dtype)
        return jnp.exp(jnp.interp(uniform, total, log_scales))

    @property
    def mean(self):
        """Mean of v, infinite where it does not exist."""
        exists = self.law.tail() + self.size / 2 > 1
        return jnp.where(exists, self.expectation(lambda v: v), jnp.inf)

    @property
    def variance(self):
        """Variance of v, infinite where it does not exist (NaN where the mean does not)."""
        order = self.law.tail() + self.size / 2
        value = self.expectation(lambda v: v**2) - self.mean**2
        missing = jnp.where(order > 1, jnp.inf, jnp.nan)
        return jnp.where(order > 2, value, missing)
