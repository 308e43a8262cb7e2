"""The Laplace approximation: a Gaussian with the curvature of the highest mode."""

import dataclasses
from functools import cache

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool

from ...core._convert import whole
from ...core._engine import AbstractEngine, Info, Sample, Schedule, Trace
from ...core._results import RESULTS
from ...core._target import AbstractTarget
from ...core._types import PRNGKey
from ...diagnostics._weights import judged_khat, khat_limit, weight_ess
from ..point._map import MAP, MAPState


class Laplace(AbstractEngine):
    """Draws from the Gaussian with mode and Hessian of the log density of positions.

    The mode is the best that `MAP(objective="unconstrained")` finds. The draws are
    independent and equally weighted; `diagnose` judges them by the tail of their importance
    ratios (Pareto k-hat), and by the shape of the density around the mode. Where k-hat allows,
    the ratios give the log evidence and its error.

    Attributes:
        draws: Draws from the Gaussian.
        starts: Independent starts; the best mode counts.
        steps: Most steps of one start.

    References:
        Tierney, Kadane (1986), Accurate approximations for posterior moments and marginal
        densities, doi:10.1080/01621459.1986.10478240.
    """

    draws: int = eqx.field(default=4_000, converter=whole("draws", least=1))
    starts: int = eqx.field(default=8, converter=whole("starts", least=1))
    steps: int = eqx.field(default=5_000, converter=whole("steps", least=1))

    @property
    def name(self) -> str:
        return "Laplace"

    def __check_init__(self):
        assert self._search.steps  # is built here, once

    @property
    def _search(self) -> MAP:
        return _search(self.starts, self.steps, self.draws)

    @property
    def schedule(self) -> Schedule:
        """One replica for each start, one step for each of L-BFGS."""
        return self._search.schedule

    def validate(self, target: AbstractTarget) -> None:
        self._search.validate(target)

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> MAPState:
        return self._search.init(target, key=key)

    def step(
        self, target: AbstractTarget, state: MAPState, index: Array, *, key: PRNGKey
    ) -> tuple[MAPState, Info]:
        return self._search.step(target, state, index, key=key)

    def done(self, state: MAPState) -> Bool[Array, ""]:
        return self._search.done(state)

    def result(self, state: MAPState) -> RESULTS:
        return self._search.result(state)

    def explain(self, target: AbstractTarget, state: MAPState) -> str:
        """Say which latent had gone farthest where no start found a mode."""
        return self._search.explain(target, state)

    def posterior(
        self, target: AbstractTarget, state: MAPState, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        sample = self._search.posterior(target, state, trace, key=key)
        evidence, error = log_mean_weight(sample.record.log_weights_is)  # pyright: ignore
        return dataclasses.replace(sample, log_evidence=evidence, log_evidence_error=error)


@cache
def _search(starts: int, steps: int, draws: int) -> MAP:
    return MAP(starts=starts, steps=steps, objective="unconstrained", draws=draws)


def log_mean_weight(log_weights: np.ndarray) -> tuple[float | None, float | None]:
    """Return the log of the mean importance weight and its standard error, in nats.

    Args:
        log_weights: In nats, any shape.

    Returns:
        None for both if the weights have too heavy a tail for a mean.
    """
    size = log_weights.size
    if not judged_khat(log_weights) < khat_limit(size):
        return None, None
    total = float(np.logaddexp.reduce(np.asarray(log_weights, np.float64), axis=None))
    return total - np.log(size), max(1 / weight_ess(log_weights) - 1 / size, 0.0) ** 0.5
