"""Persistent particles: those of all temperatures so far, weighted as draws of their mixture.

After stages at temperatures `b_s` with evidences `Z_s`, N particles each, a particle whose log
likelihood is l counts at temperature b by

    w = exp(b l) / sum_s exp(b_s l) / Z_s,     Z = sum(w) / N,

sums over all particles: importance sampling with the mixture of all stages as proposal.

Error of the log evidence. A change of `log Z_s` moves `log Z` by `c_s`, the mean share of
stage s in the mixture. So with `W` the normalised weights, less their mean over each stage,
`log Z` is off by the sum over families f, whose errors are independent, of

    psi_f = sum of W over the family + sum_s c_s psi_(s, f),

and its variance is estimated by the sum of squares. Families are the descendants of an initial
particle, as in `_driver`; if few are left, particles of the same place in their stages, which
are right if moves have mixed, have the larger sum and count.

References:
    Karamanis and Seljak (2024), Persistent sampling: enhancing the efficiency of sequential
    Monte Carlo, arXiv:2407.20722.
    Veach and Guibas (1995), doi:10.1145/218380.218498: the balance heuristic.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from ...core._types import PRNGKey, Scalar
from ._driver import Cloud
from ._kernels import Particles
from ._resampling import invert
from ._weights import normalise, wide_dtype, zero_sum


class Pool(eqx.Module):
    """Particles of all stages.

    Attributes:
        x: Flat positions.
        log_base: In nats.
        log_tilt: In nats.
        founders: Of each particle, its ancestor in the first stage.
        log_mixture: Log of the sum over stages above.
        temperatures: Of the stages, and of the one to come.
        log_evidences: Of the same, in nats.
        influence: `psi` of the same, by place in a stage and by founder.
        size: Number of stages so far.
    """

    x: Float[Array, "stage particle dim"]
    log_base: Float[Array, "stage particle"]
    log_tilt: Float[Array, "stage particle"]
    founders: Int[Array, "stage particle"]
    log_mixture: Float[Array, "stage particle"]
    temperatures: Float[Array, " place"]
    log_evidences: Float[Array, " place"]
    influence: Float[Array, "place kind particle"]
    size: Int[Array, ""]

    @staticmethod
    def empty(x: Float[Array, "particle dim"], stages: int) -> "Pool":
        """Return a pool without stages, with room for `stages`."""
        dtype, num = wide_dtype(), len(x)
        none = jnp.full((stages, num), -jnp.inf, dtype)
        # One place more, for where a full pool heads.
        zeros, each = jnp.zeros((stages, num), dtype), jnp.zeros(stages + 1, dtype)
        effects = jnp.zeros((stages + 1, 2, num), dtype)
        own = jnp.tile(jnp.arange(num, dtype=jnp.int32), (stages, 1))
        room = jnp.zeros((stages, *x.shape), x.dtype)
        size = jnp.asarray(0, jnp.int32)
        return Pool(room, zeros, none, own, zeros, each, each, effects, size)

    def logs(self, temperature: Scalar, stage: Any = slice(None)) -> Array:
        """Return log weights at a positive temperature, of one stage or of all.

        They are `-inf` where there is no particle yet.
        """
        return temperature * self.log_tilt[stage] - self.log_mixture[stage]

    def sums(self, temperature: Scalar) -> tuple[Scalar, Scalar]:
        """Return log evidence and effective sample size at a positive temperature."""

        def add(stage, sums):
            (first, second), logs = sums, self.logs(temperature, stage)
            first = jnp.logaddexp(first, logsumexp(logs))
            return first, jnp.logaddexp(second, logsumexp(2.0 * logs))

        none = jnp.full((), -jnp.inf, wide_dtype())
        first, second = jax.lax.fori_loop(0, self.size, add, (none, none))
        return first - jnp.log(self.x.shape[1]), jnp.exp(2.0 * first - second)

    def choose(self, temperature: Scalar, *, key: PRNGKey) -> tuple[Particles, Array]:
        """Return particles of one stage by systematic resampling, and their founders."""
        num, logs = self.x.shape[1], self.logs(temperature).ravel()
        offset = jr.uniform(key, (), logs.dtype)
        points = (jnp.arange(num, dtype=logs.dtype) + offset) / num
        index = invert(jnp.exp(logs - jnp.max(logs)), points)
        pick = lambda v: v.reshape(-1, *v.shape[2:])[index]
        chosen = Particles(pick(self.x), pick(self.log_base), pick(self.log_tilt))
        return chosen, pick(self.founders)

    def heading(self, temperature: Scalar) -> tuple["Pool", Scalar]:
        """Return the pool that knows its next temperature, and the log evidence there."""
        log_evidence, _ = self.sums(temperature)
        at = lambda old, new: old.at[self.size].set(new)
        found = (
            at(self.temperatures, temperature),
            at(self.log_evidences, log_evidence),
            at(self.influence, self.effects(temperature, log_evidence)),
        )
        fields = lambda p: (p.temperatures, p.log_evidences, p.influence)
        return eqx.tree_at(fields, self, found), log_evidence

    def grown(self, points: Particles, founders: Array) -> "Pool":
        """Return the pool with the stage that it was heading for."""
        at = lambda old, new: old.at[self.size].set(new)
        temperatures, evidences = self.temperatures, self.log_evidences
        temperature, log_evidence = temperatures[self.size], evidences[self.size]
        # The first stage is at temperature 0, where those without likelihood count too.
        tilt = lambda b, own: jnp.where(b > 0, b * jnp.where(b > 0, own, 0.0), 0.0)
        own = jax.vmap(tilt, (0, None))(temperatures, points.log_tilt) - evidences[:, None]
        filled = jnp.arange(len(own), dtype=jnp.int32) <= self.size
        mixture = jnp.logaddexp(
            jnp.where(self.log_tilt > -jnp.inf, self.log_mixture, 0.0),
            tilt(temperature, self.log_tilt) - log_evidence,
        )
        mixture = at(mixture, logsumexp(jnp.where(filled[:, None], own, -jnp.inf), axis=0))
        return Pool(
            at(self.x, points.x),
            at(self.log_base, points.log_base),
            at(self.log_tilt, points.log_tilt),
            at(self.founders, founders),
            mixture,
            temperatures,
            evidences,
            self.influence,
            self.size + 1,
        )

    def effects(
        self, temperature: Scalar, log_evidence: Scalar
    ) -> Float[Array, "kind particle"]:
        """Return `psi` of the log evidence at a temperature."""
        num = self.x.shape[1]

        def add(stage, total):
            tilt, mixture = self.log_tilt[stage], self.log_mixture[stage]
            own = jnp.exp(self.logs(temperature, stage) - log_evidence) / num
            off = own - jnp.mean(own)
            families = jax.ops.segment_sum(off, self.founders[stage], num_segments=num)

            def inherit(other, total):
                logs = self.temperatures[other] * tilt - self.log_evidences[other]
                # The share of a stage where a particle counts; elsewhere that may overflow.
                shares = jnp.exp(jnp.where(own > 0, logs - mixture, -jnp.inf))
                return total + own @ shares * self.influence[other]

            total = jax.lax.fori_loop(0, self.size, inherit, total)
            return total + jnp.stack([off, families])

        none = jnp.zeros((2, num), wide_dtype())
        return jax.lax.fori_loop(0, self.size, add, none)

    @property
    def variance(self) -> Scalar:
        """Relative variance of the evidence at the temperature to come."""
        return jnp.max(jnp.sum(self.influence[self.size] ** 2, axis=1))

    def cloud(self, last: Cloud) -> Cloud:
        """Return all particles as those of a cloud, weighted for the target."""
        one = jnp.ones((), wide_dtype())
        pool, log_evidence = self.heading(one)
        rows = lambda v: v[: int(self.size)].reshape(-1, *v.shape[2:])
        points = Particles(rows(self.x), rows(self.log_base), rows(self.log_tilt))
        return Cloud(
            points,
            last.control,
            normalise(rows(self.logs(one)))[0],
            rows(self.founders),
            zero_sum().add(log_evidence),
            jnp.full((), jnp.inf, wide_dtype()),  # families tell nothing of the error here
            pool.variance,
        )
