"""Warm-up: step size and metric learn window by window, then both are frozen."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from ...core._types import Scalar
from ._estimate import AbstractEstimator, Estimate, Window, window
from ._metric import Vector
from ._step_size import DualAveraging, dual_averaging
from ._transition import SAMPLING, SCALING, Chain

_FIRST_WINDOW = 10  # draws; each window is twice as long as the last
_LAST_STEPS = 100  # after the last window, for the step size alone
# Stan's relaxation of 0.05 lets the step size swing by factors of two, so that its average
# is accepted at 0.9 where 0.8 was asked for. With the metric's windows and the search for a
# first step size there is no need to be that fast.
_RELAXATION = 0.2


class Adaptation(eqx.Module):
    """What warm-up remembers.

    Attributes:
        averaging: Of the acceptance rate.
        window: Moments of the present window.
        estimate: From the last window.
    """

    averaging: DualAveraging
    window: Window
    estimate: Estimate


def window_ends(warmup: int) -> tuple[int, ...]:
    """Return the steps after which the metric is estimated anew.

    Windows double in length. What is left for the last one goes to the one before if it is
    less than half as long as that: the last window should be long, and free of the way to
    the typical set. The last 15%, at most 100 steps, belong to the step size.
    """
    stop = warmup - min(_LAST_STEPS, -(-15 * warmup // 100))
    ends, begin, length = [], 0, _FIRST_WINDOW
    while begin + length <= stop:
        begin, length = begin + length, 2 * length
        ends.append(begin)
    if ends and stop - begin < length // 4:
        ends.pop()
    return (*ends, stop) if ends or stop >= _FIRST_WINDOW else ()


def start_adaptation(estimator: AbstractEstimator, like: Vector) -> Adaptation:
    """Return no knowledge."""
    empty = _empty_window(estimator, like)
    return Adaptation(dual_averaging(jnp.ones((), like.dtype)), empty, estimator.start(like))


def adapt(
    estimator: AbstractEstimator,
    adaptation: Adaptation,
    chain: Chain,
    acceptance_rate: Scalar,
    *,
    target_accept: float,
    is_fresh: Bool[Array, ""],
    is_window_end: Bool[Array, ""],
    is_last: Bool[Array, ""],
) -> tuple[Adaptation, Chain]:
    """Learn from one transition of warm-up.

    Args:
        estimator: Turns a window into a metric.
        adaptation: What is known so far.
        chain: After the transition.
        acceptance_rate: Of the transition.
        target_accept: The rate to aim at.
        is_fresh: Whether the transition had just searched for its step size.
        is_window_end: Whether to estimate the metric now.
        is_last: Whether warm-up ends here.

    Returns:
        What is known now, and the chain for the next transition.
    """
    start = dual_averaging(chain.step_size, anchor=1.0)
    averaging = jax.tree.map(
        lambda new, old: jnp.where(is_fresh, new, old), start, adaptation.averaging
    )
    target = 1 - (1 - target_accept) / adaptation.estimate.caution
    averaging = averaging.update(acceptance_rate, target, relaxation=_RELAXATION)
    log_step = jnp.where(is_last, averaging.log_mean, averaging.log_step)
    chain = eqx.tree_at(lambda c: c.step_size, chain, jnp.exp(log_step))
    now = adaptation.window.update(chain.position, chain.gradient)

    def renew():
        new = estimator.estimate(now, adaptation.estimate)
        empty = _empty_window(estimator, chain.position)
        phase = jnp.where(chain.phase == SAMPLING, SCALING, chain.phase).astype(jnp.int32)
        return Adaptation(averaging, empty, new), eqx.tree_at(lambda c: c.phase, chain, phase)

    def go_on():
        return Adaptation(averaging, now, adaptation.estimate), chain

    return lax.cond(is_window_end, renew, go_on)


def _empty_window(estimator: AbstractEstimator, like: Vector) -> Window:
    return window(like, dense=estimator.needs_covariance, keep=estimator.keep)
