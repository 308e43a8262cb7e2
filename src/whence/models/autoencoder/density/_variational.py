"""Updates of a truncated Dirichlet-process mixture of Gaussians by variational Bayes.

    v_k ~ Beta(1, c), weights pi_k = v_k prod_{l<k} (1 - v_l),
    precision_k ~ Wishart(nu0, W0), mean_k | precision_k ~ N(m0, (beta0 precision_k)^-1),

with as many components as one allows. `Prior.of` has the defaults of scikit-learn's
`BayesianGaussianMixture`, whose updates these are; `reg` is what that adds to diagonals.

References:
    Blei and Jordan (2006), Variational inference for Dirichlet process mixtures,
    doi:10.1214/06-BA104. Bishop (2006), Pattern recognition and machine learning, 10.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float

from ....core._types import PRNGKey, Scalar

Resp = Float[Array, "row component"]


class Prior(NamedTuple):
    """Parameters of the prior.

    Attributes:
        concentration: c.
        mean: m0.
        precision: beta0, how many data `mean` counts as.
        dof: nu0, at least the number of features.
        covariance: W0^-1.
    """

    concentration: Array
    mean: Array
    precision: Array
    dof: Array
    covariance: Array

    @classmethod
    def of(cls, codes: Array, concentration: Array) -> "Prior":
        """Return the prior that data of their own mean and covariance suggest."""
        dim = codes.shape[1]
        covariance = jnp.atleast_2d(jnp.cov(codes.T))
        one = jnp.ones((), codes.dtype)
        return cls(concentration, codes.mean(0), one, dim * one, covariance)


class Factors(NamedTuple):
    """Variational factors of the components.

    Attributes:
        a: Of the Beta factor of v.
        b: Of it.
        means: m.
        precisions: beta.
        dofs: nu.
        scatters: W^-1, the scale matrices of the inverse-Wishart factors of covariances.
    """

    a: Array
    b: Array
    means: Array
    precisions: Array
    dofs: Array
    scatters: Array


def maximise(codes: Array, resp: Resp, prior: Prior, reg: float) -> Factors:
    """Return the best factors of the components given responsibilities."""
    counts = resp.sum(0) + 10 * jnp.finfo(codes.dtype).eps
    centres = (resp.T @ codes) / counts[:, None]

    def one(r, count, centre):
        gap = codes - centre
        scatter = (r[:, None] * gap).T @ gap / count + reg * jnp.eye(
            codes.shape[1], dtype=codes.dtype
        )
        shift = centre - prior.mean
        shrunk = count * prior.precision / (prior.precision + count)
        return prior.covariance + count * scatter + shrunk * jnp.outer(shift, shift)

    scatters = jax.vmap(one)(resp.T, counts, centres)
    precisions = prior.precision + counts
    means = (prior.precision * prior.mean + counts[:, None] * centres) / precisions[:, None]
    after = jnp.cumsum(counts[::-1])[::-1] - counts
    return Factors(
        1 + counts,
        prior.concentration + after,
        means,
        precisions,
        prior.dof + counts,
        scatters,
    )


def expect(codes: Array, factors: Factors) -> tuple[Resp, Array]:
    """Return log responsibilities, and their log normaliser of each row."""
    dim = codes.shape[1]
    trils = jnp.linalg.cholesky(factors.scatters)
    half_log_det = _half_log_det(trils)
    k = jnp.arange(1, dim + 1)
    log_lambda = digamma((factors.dofs[:, None] + 1 - k) / 2).sum(1) + dim * jnp.log(2.0)
    log_lambda = log_lambda - 2 * half_log_det

    def one(tril, mean, dof):
        white = solve_triangular(tril, (codes - mean).T, lower=True)
        return dof * jnp.sum(white**2, axis=0)

    square = jax.vmap(one)(trils, factors.means, factors.dofs).T
    log_weights = _log_weights(factors)
    joint = log_weights + 0.5 * (log_lambda - dim / factors.precisions)
    joint = joint - 0.5 * square - 0.5 * dim * jnp.log(2 * jnp.pi)
    total = jax.scipy.special.logsumexp(joint, axis=1)
    return joint - total[:, None], total


def _log_weights(factors: Factors) -> Array:
    both = digamma(factors.a + factors.b)
    rest = digamma(factors.b) - both
    before = jnp.cumsum(rest) - rest
    return digamma(factors.a) - both + before


def _half_log_det(trils: Array) -> Array:
    return jnp.log(jnp.diagonal(trils, axis1=-2, axis2=-1)).sum(-1)


def lower_bound(log_resp: Array, factors: Factors, prior: Prior) -> Scalar:
    """Return the evidence lower bound, in nats, for factors made of these responsibilities.

    For factors that are the best given the responsibilities (and `reg` of 0) the expected log
    joint and the entropies of the factors cancel but for their log normalisers.
    """
    num, dim = log_resp.shape[0], factors.means.shape[1]
    entropy = -jnp.sum(jnp.exp(log_resp) * log_resp)
    own = wishart_term(factors.dofs, factors.scatters)
    start = wishart_term(prior.dof[None], prior.covariance[None])
    log_beta = lambda a, b: gammaln(a) + gammaln(b) - gammaln(a + b)
    beta = log_beta(factors.a, factors.b) + jnp.log(prior.concentration)  # B(1, c) = 1 / c
    mean = -0.5 * dim * jnp.log(factors.precisions / prior.precision)
    constant = -0.5 * num * dim * jnp.log(2 * jnp.pi)
    return entropy + jnp.sum(own - start + beta + mean) + constant


def wishart_term(dofs: Array, scatters: Array) -> Array:
    """Return the log normaliser of a Wishart law with these degrees and inverse scales."""
    dim = scatters.shape[-1]
    k = jnp.arange(1, dim + 1)
    half_log_det = _half_log_det(jnp.linalg.cholesky(scatters))
    gammas = gammaln((dofs[:, None] + 1 - k) / 2).sum(1)
    return gammas + 0.5 * dofs * dim * jnp.log(2.0) - dofs * half_log_det


class VariationalFit(NamedTuple):
    """Where the updates ended.

    Attributes:
        factors: Factors of the components.
        log_resp: Log responsibilities of the last step.
        bound: Lower bound, in nats.
        steps: How many were made.
        change: Change of the bound in the last of them.
    """

    factors: Factors
    log_resp: Array
    bound: Array
    steps: Array
    change: Array


def iterate(
    codes: Array, resp: Resp, prior: Prior, *, reg: float, steps: int, tolerance: float
) -> VariationalFit:
    """Repeat the updates until the bound changes by less than the tolerance.

    Args:
        codes: Data.
        resp: Responsibilities to start from.
        prior: The prior.
        reg: Added to the diagonals of covariances.
        steps: At most.
        tolerance: In nats per row.
    """
    factors = maximise(codes, resp, prior, reg)
    low = jnp.asarray(-jnp.inf, codes.dtype)
    log_resp = jnp.zeros_like(resp)
    begin = VariationalFit(factors, log_resp, low, jnp.asarray(0), -low)

    def step(fit: VariationalFit) -> VariationalFit:
        log_resp, _ = expect(codes, fit.factors)
        factors = maximise(codes, jnp.exp(log_resp), prior, reg)
        bound = lower_bound(log_resp, factors, prior)
        return VariationalFit(factors, log_resp, bound, fit.steps + 1, bound - fit.bound)

    def goes_on(fit: VariationalFit) -> Array:
        return (fit.steps < steps) & (jnp.abs(fit.change) > tolerance * len(codes))

    return jax.lax.while_loop(goes_on, step, begin)


def kmeans(codes: Array, components: int, *, key: PRNGKey, steps: int = 20) -> Resp:
    """Return one-hot responsibilities of a k-means clustering, begun by k-means++."""
    num = len(codes)

    def choose(carry, key):
        centres, nearest, i = carry
        chosen = codes[jr.categorical(key, jnp.log(nearest))]
        gap = jnp.sum((codes - chosen) ** 2, axis=1)
        return (centres.at[i].set(chosen), jnp.minimum(nearest, gap), i + 1), None

    centres = jnp.zeros((components, codes.shape[1]), codes.dtype)
    first = (centres, jnp.ones(num, codes.dtype), jnp.asarray(0))
    (centres, _, _), _ = jax.lax.scan(choose, first, jr.split(key, components))

    def assign(centres):
        gaps = jnp.sum((codes[:, None] - centres) ** 2, axis=-1)
        return jax.nn.one_hot(jnp.argmin(gaps, axis=1), components, dtype=codes.dtype)

    def move(_, centres):
        resp = assign(centres)
        counts = resp.sum(0)[:, None]
        return jnp.where(counts > 0, resp.T @ codes / jnp.maximum(counts, 1), centres)

    return assign(jax.lax.fori_loop(0, steps, move, centres))
