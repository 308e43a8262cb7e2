"""Warm-up: step size and metric learn window by window, then both are frozen.

In every step the program updates the step size and the moments of the window. At the end
of a window the loop pauses, and `learn` decides in NumPy what follows from it.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from ...core._types import Scalar
from ._estimate import AbstractEstimator, Moments, finite_estimate, moments, replaced
from ._metric import AbstractMetric, HostArray, Vector, Welford, welford
from ._step_size import DualAveraging, dual_averaging
from ._transition import FAILED, SCALING, Chain, far

_FIRST_WINDOW = 10  # draws; each window is twice as long as the last
_LAST_STEPS = 100  # after the last window, for the step size alone
# Stan's relaxation of 0.05 lets the step size swing by factors of two, so that its average
# is accepted at 0.9 where 0.8 was asked for. With the metric's windows and the search for a
# first step size there is no need to be that fast.
_RELAXATION = 0.2
# Rejections aimed at are divided by 1 + 100 times the share of divergences, and by at least
# 0.7 times what they were divided by before. Measured on seven posteriors with tails: a
# tenth of the divergences, and no fewer effective draws per gradient.
_ALARM, _MEMORY, _MAX_CAUTION = 100.0, 0.7, 5.0
_LONG_WINDOW = 40  # draws that tell of divergences and of step sizes
_PATIENCE = 0.5  # share of warm-up after which a window is used come what may


class Window(eqx.Module):
    """What is known of the draws since the metric was last renewed.

    Attributes:
        moments: Of the draws, and of the gradients there.
        progress: Covariance of the number of a draw and its log density.
        divergences: Trajectories that diverged.
        acceptance_sum: Sum of acceptance rates.
    """

    moments: Moments
    progress: Welford
    divergences: Scalar
    acceptance_sum: Scalar

    @property
    def count(self) -> Any:
        """Number of draws; in NumPy or JAX."""
        return self.moments.draws.count

    def update(
        self,
        position: Vector,
        gradient: Vector,
        log_density: Scalar,
        *,
        is_divergent: Bool[Array, ""],
        acceptance_rate: Scalar,
    ) -> "Window":
        """Take one more draw into account."""
        return Window(
            self.moments.update(position, gradient),
            self.progress.update(jnp.stack([self.count, log_density])),
            self.divergences + is_divergent.astype(self.divergences.dtype),
            self.acceptance_sum + jnp.nan_to_num(acceptance_rate),
        )


class Adaptation(eqx.Module):
    """What warm-up remembers.

    Attributes:
        averaging: Of the acceptance rate.
        window: The present window.
        length: Draws that the window is to have.
        metric: From the last window.
        last_log_step: Logarithm of the averaged step size of the last long window.
        caution: At least 1; step sizes aim at a rejection rate divided by it.
        memory: What the estimator keeps for itself.
    """

    averaging: DualAveraging
    window: Window
    length: Int[Array, ""]
    metric: AbstractMetric
    last_log_step: Scalar
    caution: Scalar
    memory: PyTree


def last_window_end(warmup: int) -> int:
    """Return the step where the last window ends.

    The last 15% of warm-up, at most 100 steps, belong to the step size.
    """
    return warmup - min(_LAST_STEPS, -(-15 * warmup // 100))


def pauses(warmup: int) -> tuple[int, ...]:
    """Return the steps where windows may end, and the end of warm-up.

    Ten steps apart at first, then a sixth to a third of the way so far: each is a call from
    Python.
    """
    stop, at, found = last_window_end(warmup), _FIRST_WINDOW, []
    while at < stop:
        found.append(at)
        at += _FIRST_WINDOW * 2 ** max(0, int(math.log2(at / 30)))
    ends = [stop] if stop >= _FIRST_WINDOW else []
    return (*found, *ends, warmup) if warmup else ()


def start_adaptation(estimator: AbstractEstimator, like: Vector) -> Adaptation:
    """Return no knowledge."""
    one = jnp.ones((), like.dtype)
    zero = jnp.zeros_like(one)
    progress = welford(like[:1].repeat(2), dense=True)
    empty = Window(moments(like, estimator), progress, zero, zero)
    metric, memory = estimator.start(like)
    length = jnp.asarray(_FIRST_WINDOW, jnp.int32)
    return Adaptation(dual_averaging(one), empty, length, metric, jnp.inf * one, one, memory)


def aim(target_accept: float, caution: Any) -> Any:
    """Return the acceptance rate that step sizes aim at; in NumPy or JAX."""
    return 1 - (1 - target_accept) / caution


def adapt(
    adaptation: Adaptation,
    chain: Chain,
    *,
    acceptance_rate: Scalar,
    is_divergent: Bool[Array, ""],
    is_fresh: Bool[Array, ""],
    target_accept: float,
) -> tuple[Adaptation, Chain]:
    """Take one transition of warm-up into account. Traced.

    Args:
        adaptation: What is known so far.
        chain: After the transition.
        acceptance_rate: Of the transition.
        is_divergent: Whether it diverged.
        is_fresh: Whether it had just searched for its step size.
        target_accept: The rate to aim at.

    Returns:
        What is known now, and the chain for the next transition.
    """
    start = dual_averaging(chain.step_size, anchor=1.0)
    averaging = jax.tree.map(
        lambda new, old: jnp.where(is_fresh, new, old), start, adaptation.averaging
    )
    wanted = aim(target_accept, adaptation.caution)
    averaging = averaging.update(acceptance_rate, wanted, relaxation=_RELAXATION)
    now = adaptation.window.update(
        chain.position,
        chain.gradient,
        chain.log_density,
        is_divergent=is_divergent,
        acceptance_rate=acceptance_rate,
    )
    chain = eqx.tree_at(lambda c: c.step_size, chain, jnp.exp(averaging.log_step))
    return eqx.tree_at(lambda a: (a.averaging, a.window), adaptation, (averaging, now)), chain


def learn(
    estimator: AbstractEstimator, adaptation: Adaptation, chain: Chain, index: int, warmup: int
) -> tuple[Adaptation, Chain]:
    """Draw the conclusions of a window if one ends here. In NumPy.

    Args:
        estimator: Turns a window into a metric.
        adaptation: What is known so far.
        chain: Before step `index`.
        index: One of `pauses(warmup)`.
        warmup: Steps of warm-up.

    Returns:
        What is known now, and the chain for the next step; what was given if no window ends.
    """
    stop, window = last_window_end(warmup), adaptation.window
    is_going_on = window.count < int(adaptation.length) and index not in (stop, warmup)
    if is_going_on or chain.phase == FAILED:
        return adaptation, chain
    adaptation, chain = jax.tree.map(np.asarray, (adaptation, chain))
    if index == warmup:
        # Where stiffness changes from place to place a window may have seen the easy part.
        log_step = min(adaptation.averaging.log_mean, adaptation.last_log_step)
        return adaptation, replaced(chain, step_size=np.exp(log_step))
    use_anyway = index > _PATIENCE * warmup
    adaptation = _renewed(estimator, adaptation, stop - index, use_anyway)
    return adaptation, replaced(chain, phase=SCALING)


def _renewed(
    estimator: AbstractEstimator, old: Adaptation, left: int, use_anyway: bool
) -> Adaptation:
    """Return what follows from a window, with an empty one."""
    window, metric, memory, length = old.window, old.metric, old.memory, int(old.length)
    if is_frozen(window):
        metric, _ = estimator.start(jnp.asarray(window.moments.draws.mean))
        length = _FIRST_WINDOW
    elif use_anyway or not is_descending(window):
        metric, memory = finite_estimate(estimator, window.moments, metric, memory)
        length = 2 * length
    # The last window should be long: what would be left for a shorter one belongs to it.
    length = left if left < 2 * length else length
    empty = jax.tree.map(np.zeros_like, window)
    new = replaced(old, window=empty, length=length, metric=metric, memory=memory)
    if window.count < _LONG_WINDOW:
        return new
    log_step, caution = old.averaging.log_mean, _caution(window, old.caution)
    return replaced(new, last_log_step=log_step, caution=caution)


def is_descending(window: Window) -> bool:
    """Whether the log density rose in the window more than it can where a chain has arrived.

    The limit is that of a descent (`_transition.py`), far above the fluctuations of a normal
    posterior, `sqrt(dim / 2)`: a metric from the last part of the way is better than none.
    """
    count, products = window.progress.count, np.asarray(window.progress.deviations)
    with np.errstate(all="ignore"):
        rise = count * products[0, 1] / products[0, 0]  # by the slope of a regression
    return not rise <= far(len(window.moments.draws.mean))


def is_frozen(window: Window) -> bool:
    """Whether next to nothing was accepted."""
    return bool(window.acceptance_sum < 0.1 * window.count)


def _caution(window: Window, last: HostArray) -> float:
    rate = window.divergences / window.count
    return float(np.clip(max(1 + _ALARM * rate, _MEMORY * last), 1, _MAX_CAUTION))
