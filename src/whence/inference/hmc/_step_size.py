"""Step size by dual averaging of the acceptance rate."""

import math

import equinox as eqx
import jax.numpy as jnp

from ...core._types import Scalar

# Section 3.2.1 of Hoffman and Gelman (2014).
_RELAXATION, _OFFSET, _KAPPA = 0.05, 10.0, 0.75


class DualAveraging(eqx.Module):
    """State of the recursion; all logarithms are natural.

    Attributes:
        log_step: Logarithm of the step size to try next.
        log_mean: Logarithm of the averaged step size, to keep after warm-up.
        error_mean: Running mean of `target - acceptance rate`.
        log_anchor: The value towards which iterates shrink, the logarithm of a
            multiple of the first step size.
        count: Updates so far.
    """

    log_step: Scalar
    log_mean: Scalar
    error_mean: Scalar
    log_anchor: Scalar
    count: Scalar

    def update(
        self,
        acceptance_rate: Scalar,
        target: Scalar | float,
        *,
        relaxation: float = _RELAXATION,
    ) -> "DualAveraging":
        """Return the state after one more acceptance rate.

        Args:
            acceptance_rate: In [0, 1]; not a number counts as 0.
            target: The rate to aim at.
            relaxation: Their gamma: the larger, the smaller are the changes.

        References:
            Hoffman and Gelman (2014), algorithm 5, http://jmlr.org/papers/v15/hoffman14a.html.
        """
        rate = jnp.where(jnp.isnan(acceptance_rate), 0, acceptance_rate)
        count = self.count + 1
        weight = 1 / (count + _OFFSET)
        error_mean = (1 - weight) * self.error_mean + weight * (target - rate)
        log_step = self.log_anchor - jnp.sqrt(count) / relaxation * error_mean
        forget = count**-_KAPPA
        log_mean = forget * log_step + (1 - forget) * self.log_mean
        return DualAveraging(log_step, log_mean, error_mean, self.log_anchor, count)


def dual_averaging(step_size: Scalar, *, anchor: float = 10.0) -> DualAveraging:
    """Return a fresh state."""
    log_step = jnp.log(step_size)
    zero = jnp.zeros_like(log_step)
    return DualAveraging(log_step, log_step, zero, log_step + math.log(anchor), zero)
