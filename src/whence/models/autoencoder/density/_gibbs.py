"""Collapsed Gibbs sampling of a Dirichlet-process mixture of Gaussians."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int

from ....core._types import PRNGKey
from ._variational import Factors, Prior, maximise, predictive


class Clusters(NamedTuple):
    """Sums over the data of each cluster."""

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
    scatters = fixed + outer - precisions[:, None, None] * means[:, :, None] * means[:, None]
    return Factors(counts, counts, means, precisions, prior.dof + counts, scatters)


def sweep(
    codes: Array, labels: Int[Array, " row"], most: int, prior: Prior, *, key: PRNGKey
) -> Int[Array, " row"]:
    """Draw each row's cluster given those of all others, once.

    `P(k) ~ N_k t(z | cluster k)` for clusters that have data, and `c t(z | prior)` for a new
    one, the first that is empty. Clusters are at most `most`: when all are used no new one
    can be made, which `DirichletMixture` reports.

    References:
        Neal (2000), doi:10.2307/1390653, algorithm 3.
    """
    # Around the prior's mean: sums of squares lose fewer digits there.
    codes, prior = codes - prior.mean, prior._replace(mean=jnp.zeros_like(prior.mean))
    hot = jax.nn.one_hot(labels, most, dtype=codes.dtype)
    outer = jnp.einsum("nk,ni,nj->kij", hot, codes, codes)

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
        log_t = predictive(normal_wishart(clusters, prior)).log_prob(z)
        empty = clusters.counts < 0.5
        first = jnp.arange(most) == jnp.argmax(empty)
        log_count = jnp.log(jnp.where(empty, prior.concentration, clusters.counts))
        k = jr.categorical(key, jnp.where(empty & ~first, -jnp.inf, log_count + log_t))
        return (change(clusters, k, 1.0), labels.at[i].set(k)), None

    rows = (jnp.arange(len(codes)), jr.split(key, len(codes)))
    begin = (Clusters(hot.sum(0), hot.T @ codes, outer), labels)
    (_, labels), _ = jax.lax.scan(move, begin, rows)
    return labels


def gibbs(
    codes: Array, resp: Array, prior: Prior, *, key: PRNGKey, sweeps: int
) -> tuple[Factors, Array]:
    """Return the components after some sweeps, and how many clusters each sweep had."""
    most = resp.shape[1]

    def one(labels, key):
        labels = sweep(codes, labels, most, prior, key=key)
        return labels, jnp.sum(jnp.bincount(labels, length=most) > 0)

    labels, used = jax.lax.scan(one, jnp.argmax(resp, axis=1), jr.split(key, sweeps))
    hot = jax.nn.one_hot(labels, most, dtype=codes.dtype)
    return maximise(codes, hot, prior, 0.0), used
