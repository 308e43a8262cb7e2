"""HMC with many short chains that learn from one another (ChEES).

All chains make the same number of leapfrog steps, so the chains are one stream of batched
gradients without waiting. During warm-up they share what they learn: metric, step size and
trajectory length. Then all of it is frozen, and every chain is a plain HMC chain.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from ...core._convert import flag, fraction, positive, whole
from ...core._engine import Info, Sample, Schedule, Trace
from ...core._flat import flat_init, flat_view
from ...core._results import RESULTS
from ...core._start import MAX_STARTS
from ...core._target import AbstractTarget
from ...core._types import PRNGKey, Scalar
from .._chain_sample import chain_sample
from .._settings import metric_name
from ._common import MAX_ENERGY_ERROR, AbstractAdapted, restarted, van_der_corput
from ._estimate import (
    AbstractEstimator,
    AutoEstimator,
    DiagonalEstimator,
    Moments,
    finite_estimate,
    moments,
    replaced,
)
from ._integrator import PhasePoint, kinetic_energy, leapfrog
from ._metric import AbstractMetric
from ._step_size import DualAveraging

_EARLY_LEAPFROGS = 32  # while a chain falls into place, a long trajectory is of no use
# ChEES is flat beyond its first peak, where noise alone moves the length. Maximising
# criterion / length^cost instead of the criterion keeps it near the peak; by experiment.
_COST = 0.25
_FIRST_LENGTH = 1.5707963  # a quarter of a period of a standard normal: decorrelates it

Chains = Float[Array, "chain dim"]
PerChain = Float[Array, " chain"]


class _Length(eqx.Module):
    """Adam on the log trajectory length, without momentum (Hoffman et al. 2021, sec. 3).

    Attributes:
        log: Logarithm of the longest trajectory, in whitened units.
        log_mean: Its running mean, to keep after warm-up.
        square: Running mean of squared gradients.
    """

    log: Scalar
    log_mean: Scalar
    square: Scalar


class _State(eqx.Module):
    position: Chains
    log_density: PerChain
    gradient: Chains
    metric: AbstractMetric
    whitening: AbstractMetric  # the dual of `metric`
    memory: PyTree  # what the estimator of metrics keeps for itself
    moments: Moments
    step_size: DualAveraging  # one for each chain
    length: _Length


class ChEES(AbstractAdapted):
    """Cross-chain adaptive HMC: fast on easy posteriors, never a default.

    It is at its best with a cheap gradient, dozens of chains and a posterior of one mode
    whose shape a linear map can whiten. It is *not* safe on others: chains may be stuck
    while the averages look well. Trust its draws only if R-hat over the many chains does.

    Warm-up goes through windows that double in length. After each the metric is estimated
    from draws and gradients of all chains (without those that lag far behind in log
    density). Until the last of them every chain has a step size of its own, so that a
    chain with a bad start does not hold back the others; afterwards all share one, which
    is tuned to the *harmonic* mean of acceptance rates, so that no chain may be stuck.
    Trajectory lengths maximise the ChEES criterion over the fourth root of the length, and
    are jittered by a low-discrepancy sequence. Step 0 does not move: it
    looks for starts with a finite log density.

    Attributes:
        chains: Number of chains, at least 4, vectorised within one replica.
        warmup: Steps of adaptation, at least 10.
        draws: Draws kept from each chain.
        target_accept: Harmonic mean acceptance rate to aim at.
        metric: `"diagonal"`, or `"dense"`: diagonal until it has predicted better than
            that, from draws and gradients; `"auto"`: as `"dense"` if there are at least
            twice as many chains as dimensions. Or an estimator of `whence.inference.hmc`.
        max_leapfrogs: Longest trajectory, in leapfrog steps.
        learning_rate: Of Adam, on the log trajectory length.
        keep_warmup: Whether to keep the draws of warm-up.

    References:
        Hoffman, Radul, Sountsov (2021), An adaptive-MCMC scheme for setting trajectory
        lengths in Hamiltonian Monte Carlo, AISTATS, PMLR 130.
        Sountsov, Hoffman (2021), Focusing on difficult directions for learning HMC
        trajectory lengths, arXiv:2110.11576.
        Seyboldt, Carlson, Carpenter (2026), arXiv:2603.18845 (the metric).
    """

    chains: int = eqx.field(default=64, converter=whole("chains", least=4))
    warmup: int = eqx.field(default=500, converter=whole("warmup", least=10))
    draws: int = eqx.field(default=500, converter=whole("draws", least=1))
    target_accept: float = eqx.field(default=0.651, converter=fraction("target_accept"))
    metric: str | AbstractEstimator = eqx.field(
        default="auto",
        converter=metric_name("auto", "diagonal", "dense", kind=AbstractEstimator),
    )
    max_leapfrogs: int = eqx.field(default=1000, converter=whole("max_leapfrogs", least=1))
    learning_rate: float = eqx.field(default=0.025, converter=positive("learning_rate"))
    keep_warmup: bool = eqx.field(default=False, converter=flag("keep_warmup"))

    @property
    def name(self) -> str:
        return "ChEES"

    @property
    def schedule(self) -> Schedule:
        """One replica: the chains are coupled during warm-up."""
        return Schedule(
            1,
            self.warmup,
            self.warmup + self.draws,
            extendable=True,
            pauses=tuple(index + 1 for index in self.metric_updates),
            ensemble=("chain", self.chains),
            homogeneous=False,
        )

    @property
    def metric_updates(self) -> tuple[int, ...]:
        """Steps after which the metric is estimated anew, from the steps since the last."""
        last = 3 * self.warmup // 4
        return (0, *sorted(last >> k for k in range(last.bit_length())))

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> _State:
        """Return a state without starts; step 0 finds them."""
        like, _ = flat_view(target)
        dim, dtype = like.size, like.dtype
        estimator = self._estimator(dim)
        metric, memory = estimator.start(like)
        rows = jnp.zeros((self.chains, dim), dtype)
        log_step = jnp.full(self.chains, jnp.log(0.5 * dim**-0.25), dtype)
        log_length = jnp.full((), jnp.log(_FIRST_LENGTH), dtype)
        return _State(
            position=rows,
            log_density=jnp.full(self.chains, jnp.nan, dtype),
            gradient=rows,
            metric=metric,
            whitening=metric,  # the identity is its own dual
            memory=memory,
            moments=moments(like, estimator),
            step_size=jax.vmap(lambda x: DualAveraging(*restarted(x)))(log_step),
            length=_Length(log_length, log_length, jnp.zeros((), dtype)),
        )

    def step(
        self, target: AbstractTarget, state: _State, index: Array, *, key: PRNGKey
    ) -> tuple[_State, Info]:
        """Make one HMC transition of every chain; in step 0 find the starts instead."""
        key_momentum, key_accept, key_start = jr.split(key, 3)
        dtype = state.position.dtype
        is_search, is_warm = index == 0, index < self.warmup
        log_step = jnp.where(is_warm, state.step_size.log_step, state.step_size.log_mean)
        step_size = jnp.exp(log_step)
        log_length = jnp.where(is_warm, state.length.log, state.length.log_mean)
        jitter = van_der_corput(index, dtype)
        ratio = jitter * jnp.exp(log_length) / jnp.median(step_size)
        most = jnp.where(index < self.warmup // 8, _EARLY_LEAPFROGS, self.max_leapfrogs)
        num_steps = jnp.ceil(jnp.clip(ratio, 1, jnp.minimum(most, self.max_leapfrogs)))

        before = _launch(state, jr.normal(key_momentum, state.position.shape, dtype))
        after, taken = _follow(
            target, state, before, step_size, num_steps.astype(jnp.int32), is_search, key_start
        )
        old = kinetic_energies(before.momentum) - before.log_density
        new = kinetic_energies(after.momentum) - after.log_density
        is_finite = _is_finite(after) & jnp.isfinite(new)
        error = jnp.where(is_finite, new - old, jnp.inf)
        rate = jnp.where(is_search, 1, jnp.minimum(1, jnp.exp(-error)))
        accept = is_search | (jr.uniform(key_accept, rate.shape, dtype) < rate)

        moved = eqx.tree_at(
            lambda s: (s.position, s.log_density, s.gradient),
            state,
            (
                jnp.where(accept[:, None], after.position, before.position),
                jnp.where(accept, after.log_density, before.log_density),
                jnp.where(accept[:, None], after.gradient, before.gradient),
            ),
        )
        criterion, slope = chees_gradient(state.whitening, before, after, rate, is_finite)
        # By the log of the longest time, and less a share of the cost; see `_COST`.
        slope = jitter * jnp.exp(log_length) * slope - _COST * criterion
        state = lax.cond(is_warm, lambda: self._adapt(moved, index, rate, slope), lambda: moved)
        stats = {
            "lp": moved.log_density,
            "energy": jnp.where(accept, new, old),
            "acceptance_rate": rate,
            "diverging": ~is_search & (error > MAX_ENERGY_ERROR),
            "n_steps": jnp.broadcast_to(taken, rate.shape),
            "step_size": step_size,
        }
        return state, Info(moved.position, stats)

    def _adapt(self, state: _State, index: Array, rate: PerChain, slope: Scalar) -> _State:
        """Learn from one warm-up step, whose draws are in `state`."""
        is_alone = index < self.metric_updates[-1]
        signal = jnp.where(is_alone, rate, _harmonic_mean(rate))
        step_size = _update_each(state.step_size, signal, self.target_accept)
        length = self._adapt_length(state.length, index, slope, jnp.median(step_size.log_step))
        keep = _is_in_bulk(state.log_density)
        collected = state.moments.update_all(state.position, state.gradient, keep)
        return eqx.tree_at(
            lambda s: (s.moments, s.step_size, s.length), state, (collected, step_size, length)
        )

    def pause(self, state: _State, index: int) -> _State:
        """Renew the metric; step sizes and length start again with it.

        Args:
            state: After step `index - 1`.
            index: Number of the step to come.
        """
        state = jax.tree.map(np.asarray, state)
        estimator, length = self._estimator(state.position.shape[1]), state.length
        metric, memory = finite_estimate(estimator, state.moments, state.metric, state.memory)
        log_step = state.step_size.log_mean
        # A length is in the units of the metric, so it starts again with it, but for the
        # last metric, which should be like the one before.
        log_length = np.log(_FIRST_LENGTH)
        if index > self.metric_updates[-1]:
            log_step = np.full_like(log_step, np.quantile(log_step, 0.25))
            log_length = length.log
        return replaced(
            state,
            metric=metric,
            whitening=metric.dual(),
            memory=memory,
            moments=jax.tree.map(np.zeros_like, state.moments),
            step_size=restarted(log_step),
            length=(log_length, log_length, length.square),
        )

    def _estimator(self, dim: int) -> AbstractEstimator:
        if isinstance(self.metric, AbstractEstimator):
            return self.metric
        dense = self.metric == "dense" or (self.metric == "auto" and 2 * dim <= self.chains)
        return AutoEstimator() if dense else DiagonalEstimator(many=math.inf)

    def _adapt_length(
        self, length: _Length, index: Array, slope: Scalar, log_step: Scalar
    ) -> _Length:
        is_early = index < self.warmup // 8
        limit = jnp.finfo(slope.dtype).max ** 0.25  # its square must not overflow
        slope = jnp.clip(slope, -limit, limit)
        is_first = is_early | (length.square == 0)
        square = jnp.where(is_first, slope**2, 0.95 * length.square + 0.05 * slope**2)
        tiny = jnp.finfo(slope.dtype).tiny
        move = self.learning_rate * slope * lax.rsqrt(jnp.maximum(square, tiny))
        log = length.log + jnp.where(is_early, 0, move)
        log = jnp.clip(log, log_step, log_step + jnp.log(float(self.max_leapfrogs)))
        # A mean over the last 50 steps or so; Adam's own iterates keep jumping.
        log_mean = jnp.where(is_early, log, length.log_mean + 0.02 * (log - length.log_mean))
        return _Length(log, log_mean, square)

    def result(self, state: _State) -> RESULTS:
        """`nonfinite_start` if any chain found no start."""
        is_started = jnp.all(jnp.isfinite(state.log_density))
        return RESULTS.where(is_started, RESULTS.successful, RESULTS.nonfinite_start)

    def posterior(
        self, target: AbstractTarget, state: PyTree, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        trace = jax.tree.map(lambda leaf: np.swapaxes(leaf[0], 0, 1), trace)
        return chain_sample(target, trace, "mcmc", keep_warmup=self.keep_warmup)


def chees_gradient(
    whitening: AbstractMetric,
    before: PhasePoint,
    after: PhasePoint,
    rate: PerChain,
    is_finite: Bool[Array, " chain"],
) -> tuple[Scalar, Scalar]:
    """Estimate the ChEES criterion and its derivative by trajectory time.

    The criterion is a quarter of the mean square of `|x' - E x'|² - |x - E x|²`, in
    whitened coordinates; by time `x'` changes with its momentum. Proposals count by their
    acceptance rate.

    References:
        Hoffman, Radul, Sountsov (2021), section 3.
    """
    # What is never accepted may be so far away that its square is infinite.
    counts = is_finite & (rate > 0)
    weight = jnp.where(counts, rate, 0)
    weight = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
    end = jnp.where(counts[:, None], after.position, 0)
    momentum = jnp.where(counts[:, None], after.momentum, 0)
    start = before.position - jnp.mean(before.position, axis=0, keepdims=True)
    start = jax.vmap(whitening.adjoint)(start)
    end = end - jnp.sum(end * weight[:, None], axis=0, keepdims=True)
    end = jax.vmap(whitening.adjoint)(end)
    gain = jnp.sum(end**2, axis=1) - jnp.sum(start**2, axis=1)
    criterion = jnp.sum(weight * gain**2) / 4
    return criterion, jnp.sum(weight * gain * jnp.sum(end * momentum, axis=1))


def _launch(state: _State, momentum: Chains) -> PhasePoint:
    def one(position, momentum, log_density, gradient):
        force = state.metric.adjoint(gradient)
        return PhasePoint(position, momentum, log_density, gradient, force)

    return jax.vmap(one)(state.position, momentum, state.log_density, state.gradient)


def _follow(target, state, point, step_size, num_steps, is_search, key):
    """Integrate all chains, or draw starts until all are finite; one copy of the gradient."""
    _, unravel = flat_view(target)
    value_and_grad = jax.value_and_grad(lambda x: target.log_density(unravel(x)))

    def redraw(point, number):
        keys = jr.split(jr.fold_in(key, number), step_size.size)
        members = jnp.arange(step_size.size, dtype=jnp.int32)
        fresh = jax.vmap(lambda k, i: flat_init(target, key=k, member=i))(keys, members)
        position = jnp.where(_is_finite(point)[:, None], point.position, fresh)
        zeros = jnp.zeros_like(position)
        # Without force and momentum a leapfrog step of size 0 evaluates, even after NaN.
        return eqx.tree_at(
            lambda p: (p.position, p.momentum, p.force), point, (position, zeros, zeros)
        )

    def body(carry):
        point, number = carry
        point = lax.cond(is_search, redraw, lambda p, _: p, point, number)
        advance = lambda p, e: leapfrog(value_and_grad, state.metric, p, e)
        return jax.vmap(advance)(point, jnp.where(is_search, 0, step_size)), number + 1

    def is_unfinished(carry):
        point, number = carry
        is_missing = ~jnp.all(_is_finite(point)) & (number < MAX_STARTS)
        return jnp.where(is_search, is_missing, number < num_steps)

    return lax.while_loop(is_unfinished, body, (point, jnp.zeros((), jnp.int32)))


def kinetic_energies(momentum: Chains) -> PerChain:
    """Return the kinetic energy of every chain, in nats."""
    return jax.vmap(kinetic_energy)(momentum)


def _is_finite(point: PhasePoint) -> Bool[Array, " chain"]:
    return jnp.isfinite(point.log_density) & jnp.all(jnp.isfinite(point.gradient), axis=1)


def _is_in_bulk(log_density: PerChain) -> Bool[Array, " chain"]:
    """Whether a chain is near the others: one far out would rule all second moments."""
    middle, high = jnp.quantile(log_density, jnp.asarray([0.5, 0.9], log_density.dtype))
    return log_density >= middle - 10 * (high - middle)


def _harmonic_mean(rate: PerChain) -> Scalar:
    return 1 / jnp.mean(1 / jnp.maximum(rate, 1e-6))


def _update_each(state: DualAveraging, rate: PerChain, target: float) -> DualAveraging:
    return jax.vmap(lambda s, r: s.update(r, target))(state, rate)
