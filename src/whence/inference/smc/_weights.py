"""Arithmetic of importance weights: everything in logs, everything in the widest dtype.

Log weights are kept normalised, `logsumexp(log_weights) == 0`; a particle of weight zero
has log weight `-inf`. Sums are shifted by their maximum, so float32 neither overflows nor
loses the small weights.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from ...core._types import Scalar


def wide_dtype() -> jnp.dtype:
    """Return float64 where JAX has it switched on, else float32."""
    return jnp.result_type(float)


def equal_log_weights(num_particles: int) -> Float[Array, " particle"]:
    """Return the normalised log weights of an equally weighted cloud."""
    return jnp.full((num_particles,), -jnp.log(num_particles), wide_dtype())


def normalise(
    log_weights: Float[Array, " particle"],
) -> tuple[Float[Array, " particle"], Scalar]:
    """Return normalised log weights and the log of their sum, in nats.

    If every weight is zero the log sum is `-inf` and all log weights stay `-inf`.
    """
    total = logsumexp(log_weights)
    return jnp.where(jnp.isfinite(total), log_weights - total, -jnp.inf), total


def effective_sample_size(log_weights: Float[Array, " particle"]) -> Scalar:
    """Return Kish's effective sample size, between 1 and the number of particles.

    References:
        Kong, Liu and Wong (1994), doi:10.1080/01621459.1994.10476469.
    """
    return 1.0 / jnp.sum(jnp.exp(log_weights) ** 2)


def conditional_ess_fraction(
    log_weights: Float[Array, " particle"], log_tilt: Float[Array, " particle"], delta: Scalar
) -> Scalar:
    """Return the conditional ESS of the weight `exp(delta * log_tilt)`, in (0, 1].

    With normalised weights W and increments w the fraction is (sum W w)^2 / sum W w^2:
    how well the *current* weighted particles serve the next distribution. On equal
    weights it is ESS / N. Unlike the ESS of the product W w it does not charge the next
    step for the unevenness of the last, so it is right with and without resampling.
    Particles of zero likelihood (`log_tilt = -inf`) are lost at any `delta > 0`; the
    fraction is taken of the rest, or no `delta` could ever meet a target above their share.

    References:
        Zhou, Johansen and Aston (2016), doi:10.1080/10618600.2015.1060885.
    """
    alive = (log_weights > -jnp.inf) & (log_tilt > -jnp.inf)
    weights = jnp.where(alive, jnp.exp(log_weights), 0.0)
    highest = jnp.max(jnp.where(alive, log_tilt, -jnp.inf))
    growth = jnp.where(alive, jnp.exp(delta * (log_tilt - highest)), 0.0)
    first = jnp.sum(weights * growth)
    second = jnp.sum(weights * growth * growth)
    return first / jnp.sum(weights) * (first / second)  # no square: it could underflow


class CompensatedSum(eqx.Module):
    """A running sum that keeps the digits float addition drops (Neumaier, 1974)."""

    total: Scalar
    dropped: Scalar

    def add(self, term: Scalar) -> "CompensatedSum":
        """Return the sum with `term` added."""
        total = self.total + term
        lost = jnp.where(
            jnp.abs(self.total) >= jnp.abs(term),
            (self.total - total) + term,
            (term - total) + self.total,
        )
        # An infinite total has nothing to recover: inf - inf would turn it into NaN.
        lost = jnp.where(jnp.isfinite(total), lost, 0.0)
        return CompensatedSum(total, self.dropped + lost)

    @property
    def value(self) -> Scalar:
        """The sum."""
        return self.total + self.dropped


def zero_sum() -> CompensatedSum:
    """Return an empty sum in the widest dtype."""
    return CompensatedSum(jnp.zeros((), wide_dtype()), jnp.zeros((), wide_dtype()))


def family_shares(
    log_weights: Float[Array, " particle"], founders: Int[Array, " particle"]
) -> Float[Array, " particle"]:
    """Return the total weight of the descendants of each initial particle."""
    weights = jnp.exp(log_weights)
    return jax.ops.segment_sum(weights, founders, num_segments=log_weights.shape[0])
