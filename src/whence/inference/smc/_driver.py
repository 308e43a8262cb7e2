"""The particle driver: one step of sequential Monte Carlo, for any Feynman-Kac model.

A Feynman-Kac model is a law of initial particles, a Markov mutation and a potential by
which particles are weighted. Particle filters, samplers along a path of distributions,
annealed importance sampling and steered diffusions differ in these three only; weights,
resampling, genealogy and evidence are here, once.

One step is: resample if the weights have grown uneven, mutate, weigh. The cloud that
comes out is weighted, and its weights must be used.

Error of the log evidence. Let G_f be the share of the weight that descends from founder f
(an initial particle). Each source of randomness moves the shares of different founders
independently, and moves Z-hat by the sum of these movements; so sum_f (G_f - 1/N)^2
estimates its relative variance, up to what the resampling itself did to the shares
without changing the total. The last part is known exactly: it is the sum of squares of
the jumps of the shares at each resampling, and is taken off:

    V = sum_f G_f^2 - 1/N - sum_resamplings sum_f (G_f after - G_f before)^2.

With multinomial resampling at every step the expectation of the correction is 1/N a step,
which is Lee and Whiteley's factor (N / (N - 1))^(n + 1) to first order; measuring it
covers the other schemes and adaptive resampling. V sees particles that hardly moved since
they were copied. Its own relative error is about sqrt(2 / families), and when few founders
have descendants left it saturates at 1: then the variance of perfectly mixing mutations,
the sum over steps of sum_i (W_i after - W_i before)^2 (over chains, where particles are the
states of chains), is larger, and serves as the lower bound.

References:
    Del Moral (2004), doi:10.1007/978-1-4684-9393-1.
    Chan and Lai (2013), doi:10.1214/13-AOS1172.
    Lee and Whiteley (2018), doi:10.1093/biomet/asy028.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from ...core._feynman_kac import AbstractFeynmanKac, Control, Particles
from ...core._types import PRNGKey, Scalar
from .._settings import named
from ._resampling import SCHEMES, AbstractResampling, Repeated
from ._weights import (
    CompensatedSum,
    effective_sample_size,
    equal_log_weights,
    family_shares,
    normalise,
    wide_dtype,
    zero_sum,
)


class Cloud(eqx.Module):
    """Weighted particles with their past.

    Attributes:
        particles: Every leaf has a leading axis `particle`.
        control: What the particles share.
        log_weights: Normalised, shape `(particle,)`.
        founders: Index of each particle's ancestor among the initial particles.
        log_evidence: Sum of the log evidence increments, in nats.
        resampling_jumps: Sum of squared jumps of family shares at resamplings.
        mixing_variance: Relative variance of the evidence if mutations mixed perfectly.
    """

    particles: Particles
    control: Control
    log_weights: Float[Array, " particle"]
    founders: Int[Array, " particle"]
    log_evidence: CompensatedSum
    resampling_jumps: Scalar
    mixing_variance: Scalar

    @property
    def evidence_variance(self) -> Scalar:
        """Relative variance of the evidence estimate (module docstring)."""
        shares = family_shares(self.log_weights, self.founders)
        spread = jnp.sum(shares**2) - 1.0 / shares.shape[0]
        return jnp.maximum(spread - self.resampling_jumps, self.mixing_variance)

    @property
    def num_founders(self) -> Int[Array, ""]:
        """Initial particles that still have descendants of positive weight."""
        return jnp.sum(family_shares(self.log_weights, self.founders) > 0)


class Resampler(NamedTuple):
    """When and how to resample."""

    scheme: str | AbstractResampling  # a name in `SCHEMES`, or a scheme
    threshold: float | Scalar  # resample when ESS <= threshold * N; 0 never does, 1 always

    @property
    def chains(self) -> int | None:
        """Number of chains, where particles are the states of chains."""
        return self.scheme.number if isinstance(self.scheme, Repeated) else None


class Advance(NamedTuple):
    """What one step did."""

    resampled: Bool[Array, ""]  # whether it resampled
    # For each particle the index of its parent in the cloud before.
    ancestors: Int[Array, " particle"]
    ess: Scalar  # effective sample size of the weights it leaves
    largest_weight: Scalar  # the largest of them
    log_evidence_increment: Scalar  # log of the mean weight increment, in nats


def start(model: AbstractFeynmanKac, *, key: PRNGKey) -> Cloud:
    """Return the cloud of initial particles, equally weighted."""
    particles, control = model.initial(key=key)
    num = jax.tree.leaves(particles)[0].shape[0]
    return Cloud(
        particles=particles,
        control=control,
        log_weights=equal_log_weights(num),
        founders=jnp.arange(num, dtype=jnp.int32),
        log_evidence=zero_sum(),
        resampling_jumps=jnp.zeros((), wide_dtype()),
        mixing_variance=jnp.zeros((), wide_dtype()),
    )


def advance(
    model: AbstractFeynmanKac, cloud: Cloud, resampler: Resampler, *, key: PRNGKey
) -> tuple[Cloud, Advance]:
    """Resample if needed, mutate, weigh."""
    key_resample, key_mutate = jr.split(key)
    before = jnp.exp(cloud.log_weights)
    cloud, resampled, ancestors = _resample_if_uneven(cloud, resampler, key=key_resample)
    weights = jnp.where(resampled, 1.0 / len(before), before)
    particles, control = model.mutate(
        cloud.particles, cloud.log_weights, cloud.control, key=key_mutate
    )
    log_potential, control = model.log_potential(particles, cloud.log_weights, control)
    cloud = eqx.tree_at(lambda c: (c.particles, c.control), cloud, (particles, control))
    cloud, increment = weigh(cloud, log_potential, resampler.chains, weights)
    ess = effective_sample_size(cloud.log_weights)
    largest = jnp.exp(jnp.max(cloud.log_weights))
    return cloud, Advance(resampled, ancestors, ess, largest, increment)


def weigh(
    cloud: Cloud,
    log_potential: Float[Array, " particle"],
    chains: int | None = None,
    weights: Float[Array, " particle"] | None = None,
) -> tuple[Cloud, Scalar]:
    """Multiply the weights by a potential.

    Args:
        cloud: Weighted particles.
        log_potential: In nats, shape `(particle,)`.
        chains: Number of chains that the particles are the states of; None if of none.
        weights: Those of the cloud, if they are at hand: an exponential less.

    Returns:
        The reweighted cloud, and the log evidence increment in nats.
    """
    old = cloud.log_weights
    log_weights, increment = normalise(old + log_potential.astype(old.dtype))
    changes = jnp.exp(log_weights) - (jnp.exp(old) if weights is None else weights)
    step_variance = jnp.sum(jnp.sum(changes.reshape(chains or len(old), -1), axis=1) ** 2)
    weighed = eqx.tree_at(
        lambda c: (c.log_weights, c.log_evidence, c.mixing_variance),
        cloud,
        (log_weights, cloud.log_evidence.add(increment), cloud.mixing_variance + step_variance),
    )
    return weighed, increment


def weigh_at_last(cloud: Cloud, log_potential: Float[Array, " particle"]) -> Cloud:
    """Return the cloud weighed once more, where no step follows.

    With nothing alive there is no evidence, and no particle is better than another.
    """
    weighed, increment = weigh(cloud, log_potential)
    equal = equal_log_weights(cloud.log_weights.shape[0])
    log_weights = jnp.where(jnp.isfinite(increment), weighed.log_weights, equal)
    return eqx.tree_at(lambda c: c.log_weights, weighed, log_weights)


def _resample_if_uneven(
    cloud: Cloud, resampler: Resampler, *, key: PRNGKey
) -> tuple[Cloud, Bool[Array, ""], Int[Array, " particle"]]:
    num = cloud.log_weights.shape[0]
    uneven = effective_sample_size(cloud.log_weights) <= resampler.threshold * num
    resampled, ancestors = jax.lax.cond(
        uneven,
        lambda c: _resample(c, named(resampler.scheme, SCHEMES), key=key),
        lambda c: (c, jnp.arange(num, dtype=jnp.int32)),
        cloud,
    )
    return resampled, uneven, ancestors


def _resample(
    cloud: Cloud, scheme: AbstractResampling, *, key: PRNGKey
) -> tuple[Cloud, Int[Array, " particle"]]:
    ancestors = scheme(jnp.exp(cloud.log_weights), key=key).astype(jnp.int32)
    log_weights = equal_log_weights(cloud.log_weights.shape[0])
    founders = cloud.founders[ancestors]
    jumps = family_shares(log_weights, founders) - family_shares(
        cloud.log_weights, cloud.founders
    )
    resampled = eqx.tree_at(
        lambda c: (c.particles, c.log_weights, c.founders, c.resampling_jumps),
        cloud,
        (
            jax.tree.map(lambda leaf: leaf[ancestors], cloud.particles),
            log_weights,
            founders,
            cloud.resampling_jumps + jnp.sum(jumps**2),
        ),
    )
    return resampled, ancestors
