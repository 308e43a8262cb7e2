"""Laws of hidden states given data, as weighted points and moments."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ...core._results import InferenceError, InferenceWarning
from ...core._types import AnyArray

ALONE = 2.0  # effective particles: with fewer one has most of the weight, by chance


class States(eqx.Module):
    """Hidden states given data: moments at each time, and weighted points.

    Axes are `draw` (of the parameters; one if they are known), `time`, and `particle`.

    Attributes:
        means: `(draw, time, ...)`; of states of a finite set, probabilities
            `(draw, time, state)`.
        variances: Of each number in `means`.
        points: `(draw, time, particle, ...)`, or None. From a smoother that draws paths, those
            of one particle are one path.
        log_weights: Of the points, normalised, `(draw, time, particle)`.
        draw_log_weights: Of the draws, normalised, `(draw,)`.
        log_evidence: Log density of the data given each draw, in nats, `(draw,)`.
        log_evidence_error: Its standard error, in nats; 0 where it is exact.
        log_evidence_increment: Of each datum given those before, `(draw, time)`, or None.
        ess: Effective sample size of the filter, `(draw, time)`, or None.
        largest_weight: Of a particle of the filter, `(draw, time)`, or None.
        unique_ancestors: Particles of time 0 with descendants, `(draw, time)`, or None.
        ancestors: Genealogy: of each particle of the filter its parent at the time before,
            `(draw, time, particle)`, or None.
    """

    means: AnyArray
    variances: AnyArray
    points: PyTree
    log_weights: AnyArray | None
    draw_log_weights: AnyArray
    log_evidence: AnyArray
    log_evidence_error: AnyArray
    log_evidence_increment: AnyArray | None = None
    ess: AnyArray | None = None
    largest_weight: AnyArray | None = None
    unique_ancestors: AnyArray | None = None
    ancestors: AnyArray | None = None

    @property
    def _weights(self) -> np.ndarray:
        return np.exp(np.asarray(self.draw_log_weights, float))

    @property
    def mean(self) -> np.ndarray:
        """Mean at each time, over draws of parameters too; `(time, ...)`."""
        return np.tensordot(self._weights, np.asarray(self.means, float), 1)

    @property
    def sd(self) -> np.ndarray:
        """Standard deviation at each time, over draws of parameters too; `(time, ...)`."""
        between = (np.asarray(self.means, float) - self.mean[None]) ** 2
        total = np.asarray(self.variances, float) + between
        return np.sqrt(np.maximum(np.tensordot(self._weights, total, 1), 0.0))

    def quantile(self, q: Any) -> np.ndarray:
        """Return quantiles at each time, by the weights of the points.

        Args:
            q: A probability, or several.

        Returns:
            `(time, ...)`, with a leading axis if there are several.
        """
        if self.points is None or self.log_weights is None:
            raise ValueError("There are no points to take quantiles of; `smooth` draws some.")
        points = np.moveaxis(np.asarray(self.points, float), 1, 0)  # time first
        weights = np.exp(np.moveaxis(np.asarray(self.log_weights, float), 1, 0))
        weights = (weights * self._weights[None, :, None]).reshape(len(points), -1)
        points = points.reshape(*weights.shape, *points.shape[3:])
        spread = weights.reshape(*weights.shape, *[1] * (points.ndim - 2))
        spread = np.broadcast_to(spread, points.shape)
        return np.quantile(points, q, axis=1, weights=spread, method="inverted_cdf")


def moments(states: Any, log_weights: Any) -> tuple[Any, Any]:
    """Return weighted mean and variance of states at each time."""
    weights = jnp.exp(log_weights)

    def one(v):
        v = v.astype(weights.dtype)
        w = weights.reshape(*weights.shape, *[1] * (v.ndim - 2))
        mean = jnp.sum(w * v, axis=1)
        return mean, jnp.sum(w * (v - mean[:, None]) ** 2, axis=1)

    return one(states)


def require_alive(increments: Any, sequence: Any, first: int = 0) -> None:
    """Raise `InferenceError` if all particles had weight zero at a time."""
    dead = ~np.isfinite(np.asarray(increments))
    if dead.any():
        time = first + int(np.argmax(dead.any(axis=0)))
        shown = ""
        if time < sequence.num_times:
            y = jax.tree.leaves(sequence.datum(np.int32(time)))
            shown = f" (the datum is {np.asarray(y[0]).tolist()})"
        raise InferenceError(
            f"All particles have weight zero or NaN at time {time}{shown}: no state that was "
            "proposed can have given it. Look at `emission` there (a scale too small, a datum "
            "outside the support), use `proposal='guided'` or more particles."
        )


def warn_if_alone(ess: Any, first: int = 0) -> None:
    """Warn if one particle had most of the weight at a time: no error tells how wrong that is.

    Args:
        ess: Effective sample size of the filter, `(draw, time)`.
        first: Number of the first of these times.
    """
    least = np.nan_to_num(np.asarray(ess, float), nan=np.inf).min(axis=0)
    alone = np.flatnonzero(least < ALONE)
    if alone.size:
        warnings.warn(
            f"One particle has most of the weight at {alone.size} of {least.size} times, first "
            f"at time {first + alone[0]}: neither the states there nor the log evidence can be "
            "trusted, nor its error. The emission is too narrow for so few particles, or the "
            "datum far from all of them: use `ParticleFilter(proposal='guided')`, more "
            "particles, or a closed form (no `method`) where there is one.",
            InferenceWarning,
            stacklevel=5,
        )
