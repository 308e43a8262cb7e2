"""Collapsed Gibbs sampling of a Dirichlet-process mixture of Gaussians."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln
from jaxtyping import Array, Int

from ....core._types import PRNGKey
from ._variational import Factors, Prior


class Clusters(NamedTuple):
    """Sums over the data of each cluster: counts, data, outer products."""

    counts: Array
    sums: Array
    outer: Array


def normal_wishart(clusters: Clusters, prior: Prior) -> Factors:
    """Return the posterior of each cluster's mean and covariance.

    The scatter is `W0^-1 + beta0 m0 m0' + sum z z' - beta m m'`.
    """
    counts, sums, outer = clusters
    precisions = prior.precision + counts
    means = (prior.precision * prior.mean + sums) / precisions[:, None]
    fixed = prior.covariance + prior.precision * jnp.outer(prior.mean, prior.mean)
    square = precisions[:, None, None] * means[:, :, None] * means[:, None, :]
    nothing = jnp.zeros_like(counts)
    return Factors(
        nothing, nothing, means, precisions, prior.dof + counts, fixed + outer - square
    )


def student_t(points: Array, factors: Factors) -> Array:
    """Return log predictive densities of points under each component, `(point, component)`.

    Student-t with `nu + 1 - d` degrees of freedom, location m and scale matrix
    `W^-1 (1 + beta) / (beta (nu + 1 - d))`.
    """
    dim = points.shape[1]

    def one(mean, precision, dof, scatter):
        free = dof + 1 - dim
        factor = (1 + precision) / (precision * free)
        tril = jnp.linalg.cholesky(scatter * factor)
        white = solve_triangular(tril, (points - mean).T, lower=True)
        square = jnp.sum(white**2, axis=0)
        constant = gammaln((free + dim) / 2) - gammaln(free / 2)
        constant -= 0.5 * dim * jnp.log(free * jnp.pi) + jnp.log(jnp.diagonal(tril)).sum()
        return constant - 0.5 * (free + dim) * jnp.log1p(square / free)

    return jax.vmap(one)(factors.means, factors.precisions, factors.dofs, factors.scatters).T


def sweep(
    codes: Array, labels: Int[Array, " row"], most: int, prior: Prior, *, key: PRNGKey
) -> Int[Array, " row"]:
    """Draw each row's cluster given those of all others, once.

    `P(k) ~ N_k t(z | cluster k)` for clusters that have data, and `c t(z | prior)` for a new
    one, the first that is empty. Clusters are at most `most`: when all are used no new one
    can be made, which `DirichletMixture` reports.

    References:
        Neal (2000), Markov chain sampling methods for Dirichlet process mixture models,
        doi:10.2307/1390653, algorithm 3.
    """
    hot = jax.nn.one_hot(labels, most, dtype=codes.dtype)
    outer = jnp.einsum("nk,ni,nj->kij", hot, codes, codes)
    clusters = Clusters(hot.sum(0), hot.T @ codes, outer)

    def move(carry, row):
        clusters, labels = carry
        i, key = row
        z = codes[i]
        change = lambda c, k, sign: Clusters(
            c.counts.at[k].add(sign),
            c.sums.at[k].add(sign * z),
            c.outer.at[k].add(sign * jnp.outer(z, z)),
        )
        clusters = change(clusters, labels[i], -1.0)
        log_t = student_t(z[None], normal_wishart(clusters, prior))[0]
        empty = clusters.counts < 0.5
        first = jnp.arange(most) == jnp.argmax(empty)
        log_count = jnp.log(jnp.where(empty, prior.concentration, clusters.counts))
        logits = jnp.where(empty & ~first, -jnp.inf, log_count + log_t)
        k = jr.categorical(key, logits)
        return (change(clusters, k, 1.0), labels.at[i].set(k)), None

    rows = (jnp.arange(len(codes)), jr.split(key, len(codes)))
    (_, labels), _ = jax.lax.scan(move, (clusters, labels), rows)
    return labels


def gibbs(
    codes: Array, resp: Array, prior: Prior, *, key: PRNGKey, sweeps: int
) -> tuple[Factors, Array]:
    """Return the components after some sweeps, and how many clusters each sweep had."""
    most = resp.shape[1]
    labels = jnp.argmax(resp, axis=1)

    def one(labels, key):
        labels = sweep(codes, labels, most, prior, key=key)
        return labels, jnp.sum(jnp.bincount(labels, length=most) > 0)

    labels, used = jax.lax.scan(one, labels, jr.split(key, sweeps))
    hot = jax.nn.one_hot(labels, most, dtype=codes.dtype)
    outer = jnp.einsum("nk,ni,nj->kij", hot, codes, codes)
    return normal_wishart(Clusters(hot.sum(0), hot.T @ codes, outer), prior), used
