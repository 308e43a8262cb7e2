"""Microcanonical Langevin Monte Carlo, with and without Metropolis adjustment."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from ...core._convert import flag, fraction, one_of, positive, whole
from ...core._engine import Info, Sample, Schedule, Trace
from ...core._flat import flat_init, flat_view
from ...core._results import RESULTS
from ...core._start import MAX_STARTS
from ...core._target import AbstractTarget
from ...core._types import PRNGKey, Scalar
from ...diagnostics._records import AdaptedChains
from .._chain_sample import chain_sample, chain_schedule
from .._inflation import inflation
from .._settings import metric_name, named
from ._autocorrelation import Memory, forget, remember, slowest_time
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
from ._isokinetic import (
    INTEGRATORS,
    AbstractIntegrator,
    Particle,
    perturbed,
    random_direction,
    stage,
)
from ._metric import AbstractMetric, Vector
from ._step_size import DualAveraging

_EARLY_STEPS = 32  # while a chain falls into place, a long trajectory is of no use,
_LEAST_EARLY_RATIO = 8.0  # nor is a single step
# Integrated autocorrelation time to aim at, in draws; 1 costs more gradients than it saves.
_GOOD_TIME = 1.5
_DECOHERENCE = 1.25  # lengths, within an adjusted trajectory; Robnik et al. (2025)


class _State(eqx.Module):
    particle: Particle
    metric: AbstractMetric
    whitening: AbstractMetric  # the dual of `metric`
    memory: PyTree  # what the estimator of metrics keeps for itself
    moments: Moments
    lags: Memory
    step_size: DualAveraging
    log_length: Scalar


class MCLMC(AbstractAdapted):
    """Microcanonical Langevin Monte Carlo: fast on easy posteriors, never a default.

    A draw is a trajectory of motion at unit speed that gradients only turn. With
    `adjusted` it starts in a random direction, its length is jittered, and its end is
    accepted by a Metropolis test: the target is exact, as in HMC. Without, trajectories
    follow one another with a noisy direction and no test: draws are *biased*, by an amount
    that the step size rules and no R-hat shows; `energy_variance` in the statistics is
    what it costs. Compare with an adjusted run before you trust it.

    Warm-up: in its first quarter any move to a higher density is accepted, which finds the
    bulk in dozens of steps. In its first half the metric is estimated from draws and
    gradients in windows that double. Then the trajectory length, at first
    `sqrt(dimension)`, is scaled from lag-one autocorrelations of positions and log
    density. Step size is adapted throughout. Step 0 does not move: it looks for a start
    with a finite log density. A target of one dimension gets a standard normal second one,
    which no draw shows: on a line there is nothing to turn.

    Statistics: `energy` is minus the log density (the direction has no energy of its own),
    `energy_error` that of the trajectory in nats, `energy_variance` its mean square per
    step and dimension, `acceptance_rate` what a Metropolis test accepts or would accept,
    and `n_steps` counts gradients.

    Attributes:
        chains: Number of independent chains, at least 1.
        warmup: Steps of adaptation, at least 20.
        draws: Draws kept from each chain, at least 1.
        adjusted: Whether to make the Metropolis test.
        target_accept: Mean acceptance rate to aim at, if adjusted.
        energy_variance: Mean square energy error per step and dimension to aim at, if not.
        metric: `"diagonal"`, or `"dense"`: diagonal until it has predicted better than
            that, from draws and gradients; `"auto"`: as `"dense"` if warm-up has at least
            twenty steps per dimension. Or an estimator of `whence.inference.hmc`.
        integrator: `"leapfrog"`, or `"minimal_norm"` with two gradients a step, or an
            `AbstractIntegrator` of `whence.inference.hmc`.
        langevin: Whether adjusted trajectories have noise in their direction, too.
        max_steps: Longest trajectory, in steps.
        keep_warmup: Whether to keep the draws of warm-up.

    References:
        Robnik, De Luca, Silverstein, Seljak (2023), Microcanonical Hamiltonian Monte
        Carlo, JMLR 24.
        Robnik, Cohn-Gordon, Seljak (2025), arXiv:2503.01707 (adjustment).
        Robnik, Cohn-Gordon, Seljak (2024), arXiv:2412.08876 (energy errors and bias).
        Riou-Durand, Vogrinc (2022), arXiv:2202.13230 (a test that allows for noise).
    """

    chains: int = eqx.field(default=4, converter=whole("chains", least=1))
    warmup: int = eqx.field(default=1000, converter=whole("warmup", least=20))
    draws: int = eqx.field(default=1000, converter=whole("draws", least=1))
    adjusted: bool = eqx.field(default=True, converter=flag("adjusted"))
    target_accept: float = eqx.field(default=0.9, converter=fraction("target_accept"))
    energy_variance: float = eqx.field(default=5e-4, converter=positive("energy_variance"))
    metric: str | AbstractEstimator = eqx.field(
        default="auto",
        converter=metric_name("auto", "diagonal", "dense", kind=AbstractEstimator),
    )
    integrator: str | AbstractIntegrator = eqx.field(
        default="leapfrog",
        converter=one_of("integrator", INTEGRATORS, kind=AbstractIntegrator),
    )
    langevin: bool = eqx.field(default=False, converter=flag("langevin"))
    max_steps: int = eqx.field(default=1000, converter=whole("max_steps", least=1))
    keep_warmup: bool = eqx.field(default=False, converter=flag("keep_warmup"))

    @property
    def name(self) -> str:
        return "MCLMC"

    @property
    def schedule(self) -> Schedule:
        pauses = tuple(i + 1 for i in (*self.metric_updates, *self.length_updates))
        return chain_schedule(self.chains, self.warmup, self.draws, pauses=pauses)

    @property
    def metric_updates(self) -> tuple[int, ...]:
        """Steps after which the metric is estimated anew, from the steps since the last."""
        last = self.warmup // 2
        return tuple(sorted(b for k in range(last.bit_length()) if (b := last >> k) >= 5))

    @property
    def length_updates(self) -> tuple[int, ...]:
        """Steps after which the trajectory length is scaled, from the steps since the last."""
        return tuple(self.warmup * k // 16 for k in (10, 12, 14))

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> _State:
        """Return a state without a start; step 0 finds it."""
        given = flat_view(target)[0]
        dim, dtype = max(given.size, 2), given.dtype
        like, estimator = jnp.zeros(dim, dtype), self._estimator(dim)
        metric, memory = estimator.start(like)
        log_length = jnp.full((), 0.5 * jnp.log(dim), dtype)
        return _State(
            particle=Particle(like, like, jnp.full((), jnp.nan, dtype), like),
            metric=metric,
            whitening=metric,  # the identity is its own dual
            memory=memory,
            moments=moments(like, estimator),
            lags=forget(jnp.zeros(dim + 1, dtype)),
            step_size=DualAveraging(*restarted(log_length - jnp.log(4.0).astype(dtype))),
            log_length=log_length,
        )

    def step(
        self, target: AbstractTarget, state: _State, index: Array, *, key: PRNGKey
    ) -> tuple[_State, Info]:
        """Follow one trajectory; in step 0 find a start instead."""
        key_direction, key_accept, key_follow = jr.split(key, 3)
        old = state.particle
        dtype = old.position.dtype
        is_search, is_warm, is_early = index == 0, index < self.warmup, index < self.warmup // 4
        log_step = jnp.where(is_warm, state.step_size.log_step, state.step_size.log_mean)
        step_size, length = jnp.exp(log_step), jnp.exp(state.log_length)
        num_steps = self._num_steps(index, length / step_size)

        is_fresh = self.adjusted | (index <= 1)
        fresh = random_direction(key_direction, old.position)
        start = _heading(old, jnp.where(is_fresh, fresh, old.direction))
        new, error, squares, taken = self._follow(
            target, state, start, step_size, num_steps, is_search, key_follow
        )
        is_finite = new.is_finite() & jnp.isfinite(error)
        # Cut, so that statistics are finite; beyond this no energy error is informative.
        limit = 10 * MAX_ENERGY_ERROR
        error = jnp.where(is_search, 0, jnp.where(is_finite, jnp.minimum(error, limit), limit))
        squares = jnp.where(is_finite, squares, limit**2)
        variance = squares / (num_steps * old.position.size)
        is_uphill = is_early & is_finite & (new.log_density > old.log_density)
        rate = jnp.where(is_uphill, 1, jnp.minimum(1, jnp.exp(-error)))
        if self.adjusted:
            accept = is_search | (jr.uniform(key_accept, (), dtype) < rate)
            signal, aim = rate, self.target_accept
        else:
            accept = is_search | is_finite
            # Dual averaging then drives the mean of `excess` (outliers cut) to 1.
            excess = jnp.where(accept, jnp.minimum(variance / self.energy_variance, 3), 3)
            signal, aim = 1 - excess / 4, 0.75
        # Turning back at a rejection keeps the unadjusted chain off the same obstacle.
        stay = _heading(start, -start.direction)
        particle = jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, stay)
        moved = eqx.tree_at(lambda s: s.particle, state, particle)
        state = lax.cond(is_warm, lambda: self._adapt(moved, signal, aim), lambda: moved)
        position, lp = _without_padding(target, particle)
        return state, Info(
            position,
            {
                "lp": lp,
                "energy": -lp,
                "energy_error": error,
                "energy_variance": jnp.where(is_search, 0, variance),
                "acceptance_rate": rate,
                "diverging": error > MAX_ENERGY_ERROR,
                "n_steps": taken,
                "step_size": step_size,
                "trajectory_length": length,
            },
        )

    def _num_steps(self, index: Array, ratio: Scalar) -> Scalar:
        """Return how many steps to make, given how many make up one length."""
        is_early = index < self.warmup // 4
        ratio = jnp.where(is_early, jnp.maximum(ratio, _LEAST_EARLY_RATIO), ratio)
        if self.adjusted:
            ratio = 2 * van_der_corput(index, ratio.dtype) * ratio
        is_first = index < self.warmup // 8
        most = jnp.where(is_first, min(_EARLY_STEPS, self.max_steps), self.max_steps)
        return jnp.ceil(jnp.clip(ratio, 1, most))

    def _follow(self, target, state, start, step_size, num_steps, is_search, key):
        """Integrate, or draw starts until one is finite; one copy of the gradient."""
        value_and_grad = jax.value_and_grad(_padded_density(target))
        integrator = named(self.integrator, INTEGRATORS)
        stages = integrator.stages
        distance = jnp.exp(state.log_length) * (_DECOHERENCE if self.adjusted else 1.0)
        # Robnik et al. (2023), equation for partial refreshment in steps of `step_size`.
        noise = jnp.sqrt(jnp.expm1(2 * step_size / distance) / start.position.size)
        advance = jnp.where(is_search, 0, step_size)

        def redraw(particle, number):
            position = _draw_start(target, jr.fold_in(key, number))
            zeros = jnp.zeros_like(position)
            # Without force a stage of size 0 evaluates, even after NaN.
            return Particle(position, start.direction, zeros[0], zeros)

        def body(carry):
            particle, error, pending, squares, number = carry
            particle = lax.cond(is_search, redraw, lambda p, _: p, particle, number)
            if self.langevin or not self.adjusted:
                size = jnp.where(number % stages == 0, noise, 0)
                noisy = perturbed(particle.direction, size, jr.fold_in(key, number))
                particle = _heading(particle, noisy)
            particle, change = stage(
                value_and_grad, state.metric, particle, advance, number, integrator
            )
            pending = pending + change
            is_whole = number % stages == stages - 1
            squares = squares + jnp.where(is_whole, pending**2, 0)
            return (
                particle,
                error + change,
                jnp.where(is_whole, 0, pending),
                squares,
                number + 1,
            )

        def is_unfinished(carry):
            particle, *_, number = carry
            is_missing = ~particle.is_finite() & (number < MAX_STARTS)
            return jnp.where(
                is_search, is_missing, number.astype(num_steps.dtype) < stages * num_steps
            )

        zero = jnp.zeros_like(step_size)
        carry = (start, zero, zero, zero, jnp.zeros((), jnp.int32))
        particle, error, _, squares, taken = lax.while_loop(is_unfinished, body, carry)
        return particle, error, squares, taken

    def _adapt(self, state: _State, signal: Scalar, aim: float) -> _State:
        """Learn from one warm-up step, whose draw is in `state`."""
        particle = state.particle
        return eqx.tree_at(
            lambda s: (s.step_size, s.moments, s.lags),
            state,
            (
                state.step_size.update(signal, aim),
                state.moments.update(particle.position, particle.gradient),
                remember(state.lags, _watched(state.whitening, particle)),
            ),
        )

    def pause(self, state: _State, index: int) -> _State:
        """Renew the metric, or scale the length.

        Args:
            state: After step `index - 1`.
            index: Number of the step to come.
        """
        state = jax.tree.map(np.asarray, state)
        if index - 1 not in self.metric_updates:
            # Chains that diffuse need a number of draws inverse to the square of length.
            growth = np.clip(np.sqrt(slowest_time(state.lags) / _GOOD_TIME), 0.7, 4)
            length = state.log_length + np.log(growth)
            return replaced(state, lags=forget(jnp.asarray(state.lags.last)), log_length=length)
        particle, estimator = state.particle, self._estimator(state.particle.position.size)
        metric, memory = finite_estimate(estimator, state.moments, state.metric, state.memory)
        return replaced(
            state,
            metric=metric,
            whitening=metric.dual(),
            memory=memory,
            moments=jax.tree.map(np.zeros_like, state.moments),
            lags=forget(_watched(*jax.tree.map(jnp.asarray, (metric.dual(), particle)))),
            step_size=restarted(state.step_size.log_mean),
            # A length is in the units of the metric, so it starts again with it.
            log_length=0.5 * np.log(particle.position.size),
        )

    def _estimator(self, dim: int) -> AbstractEstimator:
        if isinstance(self.metric, AbstractEstimator):
            return self.metric
        dense = self.metric == "dense" or (self.metric == "auto" and 20 * dim <= self.warmup)
        return AutoEstimator() if dense else DiagonalEstimator(many=math.inf)

    def result(self, state: _State) -> RESULTS:
        is_started = state.particle.is_finite()
        return RESULTS.where(is_started, RESULTS.successful, RESULTS.nonfinite_start)

    def posterior(
        self, target: AbstractTarget, state: PyTree, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        method = "mcmc" if self.adjusted else "unadjusted"
        record, keep = AdaptedChains(self.target_accept), self.keep_warmup
        sample = chain_sample(target, trace, method, keep_warmup=keep, record=record)
        if self.adjusted:
            return sample
        shape = sample.stats["lp"].shape
        equal = np.full(shape, 1 / np.prod(shape))
        found = inflation(target, sample.positions, equal, None, key=key)
        return dataclasses.replace(sample, record=found)


def _heading(particle: Particle, direction: Vector) -> Particle:
    return Particle(particle.position, direction, particle.log_density, particle.gradient)


def _draw_start(target: AbstractTarget, key: PRNGKey) -> Vector:
    position = flat_init(target, key=key)
    if position.size > 1:
        return position
    return jnp.append(position, jr.normal(jr.fold_in(key, 1), (1,), position.dtype))


def _padded_density(target: AbstractTarget):
    """Return the log density of flat positions, with a second dimension if there is one."""
    flat, unravel = flat_view(target)
    if flat.size > 1:
        return lambda x: target.log_density(unravel(x))
    return lambda x: target.log_density(unravel(x[:1])) - 0.5 * x[1] ** 2


def _without_padding(target: AbstractTarget, particle: Particle) -> tuple[Vector, Scalar]:
    if flat_view(target)[0].size > 1:
        return particle.position, particle.log_density
    return particle.position[:1], particle.log_density + 0.5 * particle.position[1] ** 2


def _watched(whitening: AbstractMetric, particle: Particle) -> Float[Array, " watched"]:
    """What must not be correlated in time: coordinates and log density."""
    return jnp.append(whitening.adjoint(particle.position), particle.log_density)
