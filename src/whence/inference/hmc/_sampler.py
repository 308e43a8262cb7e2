"""A Hamiltonian sampler but for its trajectories: state, warm-up, records, draws."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from ...core._begin import is_told
from ...core._engine import Info, Sample, Schedule, Trace
from ...core._flat import flat_init, flat_view
from ...core._results import RESULTS
from ...core._target import AbstractTarget
from ...core._types import PRNGKey
from ...diagnostics._records import AdaptedChains
from .._chain_sample import chain_sample, chain_schedule
from ._adapt import Adaptation, adapt, aim, learn, start_adaptation
from ._common import AbstractAdapted
from ._estimate import (
    AbstractEstimator,
    AutoEstimator,
    CovarianceEstimator,
    DiagonalEstimator,
    LowRankEstimator,
    replaced,
)
from ._integrator import PhasePoint
from ._trajectory import AbstractTrajectory, Flag
from ._transition import FAILED, SAMPLING, SEARCHING, Chain, start_with, transition
from ._two_starts import Start, own_index, pauses_of_two, swapped

METRICS = ("auto", "diagonal", "fisher", "dense", "low_rank")
# Above this dimension two products with a dense matrix per gradient begin to cost as much
# as a typical gradient.
MAX_DENSE_DIM = 64


class SamplerState(eqx.Module):
    """State of one chain; after warm-up only the metric of `adaptation` is of use.

    Attributes:
        chain: Where it is.
        adaptation: What warm-up remembers.
        other: The start that is not followed.
        is_told: Whether the user said where to begin: there is no other start then.
    """

    chain: Chain
    adaptation: Adaptation
    other: Start
    is_told: Bool[Array, ""]


class AbstractSampler(AbstractAdapted):
    """A Hamiltonian sampler whose step size and metric adapt; it lacks trajectories alone.

    Attributes:
        chains: Number of chains.
        warmup: Steps of adaptation.
        draws: Draws kept from each chain.
        target_accept: Mean acceptance rate to aim at.
        metric: One of `METRICS`, or an estimator.
        step_size: The first step size; None to search for one.
        keep_warmup: Whether to return the draws of warm-up as well.
    """

    chains: eqx.AbstractVar[int]
    warmup: eqx.AbstractVar[int]
    draws: eqx.AbstractVar[int]
    target_accept: eqx.AbstractVar[float]
    metric: eqx.AbstractVar[str | AbstractEstimator]
    step_size: eqx.AbstractVar[float | None]
    keep_warmup: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def start_trajectory(
        self, point: PhasePoint, step_size: Array, one_step: Flag, index: Array, *, key: PRNGKey
    ) -> AbstractTrajectory:
        """Return a trajectory of one point.

        Args:
            point: Its start, with a fresh momentum.
            step_size: Positive, or zero while a start is searched for.
            one_step: Whether one leapfrog step is all that is wanted.
            index: Number of the transition.
            key: For all that is random in the trajectory.
        """

    @property
    def schedule(self) -> Schedule:
        return chain_schedule(
            self.chains,
            self.warmup,
            self.draws,
            pauses=pauses_of_two(self.warmup),
            homogeneous=self.step_size is not None,
        )

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> SamplerState:
        """Return a state without a position: the first step searches for one."""
        del key
        like, _ = flat_view(target)
        step_size = jnp.asarray(self.step_size or 1.0, like.dtype)
        phase = jnp.asarray(SEARCHING, jnp.int32)
        chain = Chain(like, jnp.zeros_like(step_size), like, step_size, phase)
        adaptation = start_adaptation(self._estimator(len(like)), like)
        told = jnp.asarray(is_told())
        return SamplerState(chain, adaptation, Start(chain, adaptation), told)

    def step(
        self, target: AbstractTarget, state: SamplerState, index: Array, *, key: PRNGKey
    ) -> tuple[SamplerState, Info]:
        like, unravel = flat_view(target)
        own = own_index(index, self.warmup, state.is_told)

        def log_density(x):
            return jnp.asarray(target.log_density(unravel(x)), like.dtype)

        def start(point, step_size, is_single, *, key):
            return self.start_trajectory(point, step_size, is_single, own, key=key)

        chain, stats = transition(
            jax.value_and_grad(log_density),
            lambda key: flat_init(target, key=key),
            start,
            state.adaptation.metric,
            state.chain,
            start_with(self.step_size is None, descend=self.warmup > 0),
            key=key,
        )
        state = self._adapt(state, chain, stats, index)
        return state, Info(chain.position, {**stats})

    def pause(self, state: SamplerState, index: int) -> SamplerState:
        estimator = self._estimator(len(state.chain.position))
        adaptation, chain = learn(estimator, state.adaptation, state.chain, index, self.warmup)
        now, other = Start(chain, adaptation), state.other
        if not state.is_told:
            now, other = swapped(now, other, index, self.warmup)
        return replaced(state, chain=now.chain, adaptation=now.adaptation, other=other)

    def result(self, state: SamplerState) -> RESULTS:
        return RESULTS.where(
            state.chain.phase == FAILED, RESULTS.nonfinite_start, RESULTS.successful
        )

    def posterior(
        self, target: AbstractTarget, state: SamplerState, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        aims = aim(self.target_accept, np.asarray(state.adaptation.caution))
        record, keep = AdaptedChains(aims), self.keep_warmup
        return chain_sample(target, trace, "mcmc", keep_warmup=keep, record=record)

    def _adapt(self, state: SamplerState, chain: Chain, stats: dict[str, Array], index: Array):
        def warm():
            return adapt(
                state.adaptation,
                chain,
                acceptance_rate=stats["acceptance_rate"],
                is_divergent=stats["diverging"],
                is_fresh=state.chain.phase != SAMPLING,
                target_accept=self.target_accept,
            )

        frozen = found = state.adaptation, chain
        if self.warmup > 0:
            found = lax.cond(index < self.warmup, warm, lambda: frozen)
        adaptation, new = found
        return SamplerState(new, adaptation, state.other, state.is_told)

    def _estimator(self, dim: int) -> AbstractEstimator:
        if isinstance(self.metric, AbstractEstimator):
            return self.metric
        if self.metric == "auto":
            return AutoEstimator() if dim <= MAX_DENSE_DIM else DiagonalEstimator()
        named = {
            "diagonal": DiagonalEstimator(many=0.0),
            "fisher": DiagonalEstimator(many=math.inf),
            "dense": CovarianceEstimator(),
            "low_rank": LowRankEstimator(),
        }
        return named[self.metric]
