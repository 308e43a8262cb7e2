"""What is lowered for one task, by its best local posterior, found once and thrown away.

Minus the evidence lower bound per task is `E_q[l] + KL(q || N(mu, Sigma))`, with q in closed
form from a surrogate. The term of the hierarchy's own law, `KL(q(phi) || p(phi)) / N`,
vanishes for endless tasks, and with it all but `m0` and `V0 / n0 = E[Sigma^-1]^-1`: that is
what the population holds. In a mixture (of components, or of scales v) the task also has
probabilities of where it belongs, from the evidence of its surrogates.

Where some points are held out, it is minus their log predictive density given the others.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from ...core._types import PRNGKey, Scalar
from ._local import AbstractLocal, Combined, Quadratic, stop
from ._meta import NIWMeta, Population, Scales, TaskLoss
from ._tasks import Batch


class LocalPosterior(NamedTuple):
    """What is known of one task."""

    surrogates: Quadratic  # by component
    combined: Combined  # by component and scale
    log_prior: Array  # of components and scales, `(component, scale)`
    log_weights: Array  # the same given the data, normalised


def local_posterior(
    loss: TaskLoss,
    population: Population,
    scales: Scales,
    local: AbstractLocal,
    key: PRNGKey,
    *,
    held: bool = True,
) -> LocalPosterior:
    """Fit surrogates from every component, and combine them with every scale.

    `held` surrogates are not differentiated: what they are made from is cut off before.
    """
    known, source = stop((loss, population)) if held else (loss, population)
    fit = lambda mean, covariance, key: local.fit(known, mean, covariance, key=key)
    keys = jr.split(key, len(population.log_weights))
    surrogates = jax.vmap(fit)(source.mean, source.covariance, keys)
    log_prior = log_prior_of(population, scales)
    combined = combine_all(surrogates, population, scales)
    log_weights = jax.nn.log_softmax(log_prior - combined.energy, axis=(0, 1))
    return LocalPosterior(surrogates, combined, log_prior, log_weights)


def log_prior_of(population: Population, scales: Scales) -> Array:
    """Return log probabilities of components and scales, `(component, scale)`."""
    own = jax.nn.log_softmax(population.log_weights)
    return own[:, None] + stop(scales.log_weights)[None]


def combine_all(surrogates: Any, population: Population, scales: Scales) -> Combined:
    """Combine the surrogate of each component with its prior at each scale."""

    def at_scales(surrogate, mean, covariance):
        at = lambda v: surrogate.combine(mean, covariance.scaled(v))
        return jax.vmap(at)(stop(scales.values))

    return jax.vmap(at_scales)(surrogates, population.mean, population.covariance)


def task_objective(
    meta: NIWMeta,
    local: AbstractLocal,
    task: Batch,
    support: Array | None,
    pairs: int,
    key: PRNGKey,
    most: int | None = None,
) -> tuple[Scalar, dict[str, Array]]:
    """Return what one task is to lower, in nats, and what to record.

    Averages are over pairs of draws opposite to each other, which cancels the noise of what
    is odd in them.
    The posterior is found from the points of the mask `support`, the others are predicted;
    with None it is the bound of the evidence of all. `most` is how many points `support` has
    at most, the only ones that work is done for then.
    """
    key_fit, key_scale, key_noise = jr.split(key, 3)
    x, y, mask = task
    loss = TaskLoss(meta, x, y, mask)
    if support is not None:
        first = jnp.argsort(~support)[:most]
        loss = TaskLoss(meta, x[first], y[first], support[first])
    # The bound has no derivative through its best q; a prediction has one, through all that
    # q was found from.
    held = support is None
    found = local_posterior(loss, meta.population, meta.scales, local, key_fit, held=held)
    number = len(found.log_weights)
    drawn = jr.categorical(key_scale, stop(found.log_weights), axis=1)
    posterior = jax.tree.map(lambda a: a[jnp.arange(number), drawn], found.combined.posterior)
    predicted = lambda weights: meta.likelihood.log_prob(loss.scores(weights, x), y)

    def at_draws(posterior, key):
        noise = jr.normal(key, (pairs, posterior.noise_size), posterior.mean.dtype)
        moves = jax.vmap(posterior.move)(noise)
        weights = posterior.mean[None] + jnp.concatenate([moves, -moves])
        return jax.vmap(loss if support is None else predicted)(weights)

    values = jax.vmap(at_draws)(posterior, jr.split(key_noise, number))
    # At the bound's best the probabilities have no gradient, and need not be differentiated.
    shares = stop(jnp.exp(found.log_weights))
    log_ratio = stop(found.log_weights) - found.log_prior
    kl = jnp.sum(shares * (found.combined.kl + log_ratio))
    if support is None:
        fit = jnp.sum(jnp.sum(shares, axis=1) * jnp.mean(values, axis=1))
        value = fit + kl
    else:
        log_share = jax.nn.logsumexp(found.log_weights, axis=1) - jnp.log(2.0 * pairs)
        mixed = jax.nn.logsumexp(values + log_share[:, None, None], axis=(0, 1))
        value = fit = -jnp.sum(jnp.where(mask & ~support, mixed, 0))
    best = jnp.argmax(jnp.sum(shares, axis=1))
    stats = {
        "fit": fit,
        "kl": kl,
        "clipped": found.surrogates.clipped[best],
        "ratio": adaptation_ratio(meta, found, best),
    }
    return value, jax.tree.map(stop, stats)


def adaptation_ratio(meta: NIWMeta, found: LocalPosterior, component: Array) -> Scalar:
    """Return `|m - m0| / |centre - m0|`: 0 if the prior rules, 1 if the data do.

    It is 1 where the surrogate was made at the prior's mean, and says nothing there.
    """
    start = meta.population.mean[component]
    scale = jnp.argmax(found.log_weights[component])
    moved = found.combined.posterior.mean[component, scale] - start
    wanted = found.surrogates.centre[component] - start
    moved, wanted = jnp.linalg.norm(moved), jnp.linalg.norm(wanted)
    return moved / jnp.maximum(jnp.maximum(moved, wanted), jnp.finfo(moved.dtype).tiny)
