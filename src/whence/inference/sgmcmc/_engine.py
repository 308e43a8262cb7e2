"""Stochastic-gradient MCMC: any gradient, integrator, preconditioner and decay, as one engine.

The engines of this package are configurations of `AbstractSGMCMC`: each has settings of its
own and says by `parts` what they mean.
"""

import abc
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Int

from ...core._begin import first_position
from ...core._convert import flag, number, positive, whole
from ...core._data import log_density_estimate
from ...core._engine import AbstractOnlineEngine, Info, Sample, Schedule, Trace
from ...core._flat import flat_view
from ...core._results import RESULTS
from ...core._sites import everywhere
from ...core._start import find_start
from ...core._target import AbstractTarget
from ...core._types import Position, PRNGKey, Scalar
from ._checks import checked, describe_stability
from ._decay import ConstantStep, Cyclical, as_decay
from ._gradient import (
    Centre,
    MinibatchGradient,
    Space,
    Vector,
    batches_per_epoch,
)
from ._integrator import Force, Motion, Terms, integrate, is_cached
from ._parts import APART, Learned, Parts, SGMCMCState
from ._preconditioner import AbstractPreconditioner, Curvature, Identity, as_preconditioner
from ._tuning import FIRST, LATER, Tuning, chosen, descending, look

DEFAULT_DRAWS = 1_000  # draws recorded per chain if `thin` is not given
DEFAULT_DAMPING = 0.1  # friction times step size, if only the step size is given


def optional_positive(name: str) -> Any:
    """Return a field for a positive number, or None."""
    return eqx.field(default=None, converter=positive(name, optional=True))


def decay_field() -> Any:
    """Return the field `decay`."""
    return eqx.field(default=ConstantStep(), converter=as_decay)


class _Update(eqx.Module):
    """The moving parts of an update, and the last one's start if draws are made of it.

    Positions and gradients are single vectors: what is done to every coordinate is then one
    operation and not one per array of a network.
    """

    motion: Motion
    learned: Learned
    finite: Int[Array, ""]  # updates of this block before the first that failed
    start: Vector
    force: Force
    clamped: Scalar


class AbstractSGMCMC(AbstractOnlineEngine):
    """Dynamics with the gradient of a minibatch and no accept-reject step.

    `step_size` multiplies the gradient of the full log density, and the noise that belongs to
    it has variance `2 step_size` (overdamped), or comes from a friction in units of one over
    that of the step size.

    One recorded draw is made of `thin` updates. `stats` holds `step_size`, and
    `nonfinite_at`, the number of the update after which the chain was no longer finite (-1 if
    it always was); `lp` and `grad_norm` (both estimates) where the update looks at the draw;
    `kinetic`, the mean square of the momenta, and `friction` where there is a momentum; and
    `clamped` where noise is subtracted. With a `decay` draws are weighted by their step size.

    Attributes:
        chains: Independent chains.
        steps: Updates per chain, warm-up included; rounded down to a multiple of `thin`.
        step_size: `h`. None finds one in warm-up, chain by chain, from the largest curvature
            and the noise of the gradient; `stats["step_size"]` has it. Until half of warm-up
            steps are longer, so that chains arrive.
        preconditioner: `Identity()`, `RMSprop()`, `Fisher()`, `ScaleAdapted()` or
            `Curvature()`; or `"identity"`, `"rmsprop"`, `"fisher"`, `"scale-adapted"` or
            `"curvature"`. None is the last, and the first if `step_size` is given.
        temperature: 1 for the posterior; below 1 for a cold one, `p ** (1 / temperature)`.
        thin: Updates per recorded draw; None records at most 1000 draws.
        warmup: Updates at the start that are not draws; None is a fifth of `steps`.
        keep_warmup: Whether to keep the draws of warm-up.
        checks: Share of the run's work spent on checks of it after the end, for `diagnose`.

    References:
        Dauphin, de Vries and Bengio (2015), "Equilibrated adaptive learning rates for
        non-convex optimization", NIPS, arXiv:1502.04390 [scaling: Curvature].
    """

    chains: int = eqx.field(default=4, converter=whole("chains", least=1), kw_only=True)
    steps: int = eqx.field(default=50_000, converter=whole("steps", least=1), kw_only=True)
    step_size: float | None = eqx.field(
        default=None, converter=positive("step_size", optional=True), kw_only=True
    )
    preconditioner: AbstractPreconditioner | None = eqx.field(
        default=None, converter=as_preconditioner, kw_only=True
    )
    temperature: float = eqx.field(default=1.0, converter=positive("temperature"), kw_only=True)
    thin: int | None = eqx.field(
        default=None, converter=whole("thin", least=1, optional=True), kw_only=True
    )
    warmup: int | None = eqx.field(
        default=None, converter=whole("warmup", least=0, optional=True), kw_only=True
    )
    keep_warmup: bool = eqx.field(default=False, converter=flag("keep_warmup"), kw_only=True)
    checks: float = eqx.field(
        default=0.1, converter=number("checks", least=0, below=1), kw_only=True
    )

    @property
    @abc.abstractmethod
    def parts(self) -> Parts:
        """What an update is made of."""

    def __check_init__(self):
        parts = self.parts
        if self.schedule.steps <= self.schedule.warmup:
            raise ValueError(
                "`steps` must leave at least one draw after `warmup`; got "
                f"`steps={self.steps}`, `warmup={self.warmup}`, `thin={self.thin}`."
            )
        if parts.preconditioner.gamma and not parts.overdamped:
            raise ValueError(
                "`preconditioner` with `gamma=True` needs the integrator 'SGLD'; got "
                f"{parts.word!r}."
            )
        if parts.subtract_noise and isinstance(parts.preconditioner, Identity | Curvature):
            raise ValueError(
                "`subtract_noise` needs a preconditioner that measures the noise, such as "
                f"ScaleAdapted(); got True with {type(parts.preconditioner).__name__}()."
            )

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def scaling(self) -> AbstractPreconditioner:
        """The preconditioner: a step size that is given is in the units of the latents."""
        default = Curvature() if self.step_size is None else Identity()
        return default if self.preconditioner is None else self.preconditioner

    @property
    def searches(self) -> bool:
        """Whether a step size or units are found in warm-up."""
        return self.step_size is None or isinstance(self.scaling, Curvature)

    @property
    def schedule(self) -> Schedule:
        """One step of the loop is one draw: `thin` updates, or more at the start of a cycle."""
        warmup = self.steps // 5 if self.warmup is None else self.warmup
        decay, draws, updates = self.parts.decay, 1, self._block
        if isinstance(decay, Cyclical):
            draws, updates = decay.layout(self._block)[1], decay.period
        warmup, steps = -(-warmup // updates) * draws, self.steps // updates * draws
        return Schedule(
            replicas=self.chains,
            warmup=warmup,
            steps=steps,
            extendable=True,
            rows_per_step=self.parts.streamed * -(-updates // draws),
            sites=self.parts.sites,
        )

    @property
    def updates_per_draw(self) -> float:
        """How many updates a draw takes, in the mean."""
        decay = self.parts.decay
        if isinstance(decay, Cyclical):
            return decay.period / decay.layout(self._block)[1]
        return float(self._block)

    @property
    def _block(self) -> int:
        if self.thin is not None:
            return self.thin
        decay = self.parts.decay
        used = 1 - decay.exploration if isinstance(decay, Cyclical) else 1
        return -(-int(self.steps * used) // DEFAULT_DRAWS)

    def validate(self, target: AbstractTarget) -> None:
        """Raise `ValueError` unless the target has the data and the step size is known.

        Args:
            target: The target density.

        Raises:
            ValueError: If `batch_size` is more than the data have, or `step_size` is None
                and there is nothing to take it from.
        """
        self.parts.gradient.validate(target)
        if self.searches and not self.schedule.warmup:
            raise ValueError(
                "`step_size=None` is found in warm-up, as is the preconditioner Curvature(), "
                f"and there is none; got `warmup={self.warmup}`."
            )

    def validate_online(self, target: AbstractTarget) -> None:
        self.validate(target)
        plain = isinstance(self.parts.gradient, MinibatchGradient)
        if self.searches or not plain:
            raise ValueError(
                "While data grow, `step_size` must be given and the gradient be that of plain "
                f"minibatches; got {self.name} with `step_size={self.step_size}`."
            )

    def draw(self, target: AbstractTarget, state: SGMCMCState, *, key: PRNGKey) -> Position:
        return state.position

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> SGMCMCState:
        parts = self.parts
        size = parts.gradient.batch_size
        rows = None if size is None else jnp.arange(size, dtype=jnp.int32)

        def attempt(key):
            position = first_position(target, key=key)
            finite = jnp.isfinite(log_density_estimate(target, position, rows))
            return position, everywhere(finite) if parts.sites else finite

        zeros, unravel = flat_view(target)
        position, finite = find_start(attempt, unravel(zeros), key=key)
        flat, form = ravel_pytree(position)
        space = Space(target, form)
        key_epoch, key_force, key_tuning = jr.split(jr.fold_in(key, APART), 3)
        epoch = parts.gradient.init(space, flat, key=key_epoch)
        if isinstance(epoch, Centre):
            flat, position = epoch.point, form(epoch.point)
        force, scale = None, parts.preconditioner.init(flat)
        cached = is_cached(parts.word)
        if cached or self.searches:  # which takes batches from an epoch that has begun
            first = jnp.zeros((), jnp.int32)
            found = parts.gradient.estimate(space, flat, epoch, first, key=key_force)
            scale, epoch = parts.preconditioner.update(scale, found[1]), found[2]
            if cached:
                force = Force(jnp.asarray(found[0]).astype(flat.dtype), found[1])
        return SGMCMCState(
            position,
            jnp.zeros_like(flat[:0] if parts.overdamped else flat),
            jnp.ones((), flat.dtype),
            force,
            epoch,
            scale,
            Tuning.start(flat, key=key_tuning) if self.searches else None,
            jnp.where(finite, -1, -2).astype(jnp.int32),
        )

    def step(
        self, target: AbstractTarget, state: SGMCMCState, index: Array, *, key: PRNGKey
    ) -> tuple[SGMCMCState, Info]:
        """Make `thin` updates and record a draw of the last one."""
        return self.advance(target, state, index, 1.0, key=key)

    def advance(
        self,
        target: AbstractTarget,
        state: SGMCMCState,
        index: Array,
        pace: float,
        *,
        key: PRNGKey,
    ) -> tuple[SGMCMCState, Info]:
        """As `step`, with step sizes `pace` times as large."""
        parts, (first, count) = self.parts, self._updates(index)
        flat, form = ravel_pytree(state.position)
        space, adapting = Space(target, form), index < self.schedule.warmup
        tuning, scale = self._searched(space, state, flat, index, first, key=key)
        h, friction = self._pace(target, tuning, index, flat.dtype)
        descends = (self.step_size is None) & (self._progress(index, flat.dtype) < 1)
        limit = None if tuning is None or self.step_size is not None else tuning.limit
        h = h * pace

        def update(i: Array, last: _Update) -> _Update:
            key_batch, key_noise = jr.split(jr.fold_in(key, i))
            counter = first + i
            terms = Terms(
                h * parts.decay.factor(counter, flat.dtype),
                friction,
                self._heat(counter, flat.dtype),
                lambda learned: parts.preconditioner.diagonal(learned.scale),
                lambda learned: learned.noise_variance,
                lambda learned: learned.drift,
                jnp.where(descends, 0, 1).astype(flat.dtype),
            )
            force_at = partial(parts.evaluate, space, adapting, counter, key_batch)

            def evaluate(x, number, learned):
                force, learned = force_at(x, number, learned)
                if limit is None:
                    return force, learned
                root = parts.preconditioner.root(learned.scale)
                factor = partial(limit, root=root, momentum=state.momentum)
                limited = lambda g: g * factor(g)
                gradient = jax.lax.cond(descends, limited, lambda g: g, force.gradient)
                return Force(force.log_density, gradient), learned

            noise = lambda n: jr.normal(
                jr.fold_in(key_noise, n) if n else key_noise, flat.shape, flat.dtype
            )
            motion, learned, force, clamped = integrate(
                parts.word, last.motion, last.learned, terms, evaluate, noise
            )
            ok = jnp.isfinite(force.log_density) & jnp.all(jnp.isfinite(motion.position))
            going = last.finite + (ok & (last.finite == i)).astype(jnp.int32)
            seen = force if last.motion.force is None else last.motion.force
            start = last.motion.position if parts.draws_starts else last.start
            return _Update(motion, learned, going, start, seen, clamped)

        none = jnp.zeros((), flat.dtype)
        begin = _Update(
            Motion(flat, state.momentum, state.thermostat, state.force),
            parts.unlearned(flat, state.epoch, scale),
            jnp.zeros((), jnp.int32),
            flat if parts.draws_starts else flat[:0],
            Force(none, jnp.zeros_like(flat)),
            none,
        )
        last = jax.lax.fori_loop(0, count, update, begin)
        alive = state.nonfinite_at == -1
        complete = alive & (last.finite == count)
        failed_at = jnp.where(alive, first + last.finite, state.nonfinite_at)
        failed_at = jnp.where(complete, -1, failed_at).astype(jnp.int32)
        moved = last.motion
        drawn = last.start if parts.draws_starts else moved.position
        keep, draw = (form(jnp.where(complete, x, flat)) for x in (moved.position, drawn))
        new = SGMCMCState(
            keep,
            moved.momentum,
            moved.thermostat,
            moved.force,
            last.learned.epoch,
            last.learned.scale,
            tuning,
            failed_at,
        )
        stats: dict[str, Any] = {
            "step_size": h * parts.decay.factor(first + count - 1, flat.dtype),
            "nonfinite_at": failed_at,
        }
        if parts.shows_density:
            stats["lp"] = last.force.log_density
            stats["grad_norm"] = jnp.linalg.norm(last.force.gradient)
        if not parts.overdamped:
            stats["kinetic"] = jnp.mean(moved.momentum**2)
            stats["friction"] = friction * moved.thermostat
        if parts.subtract_noise:
            stats["clamped"] = last.clamped
        return new, Info(draw, stats)

    def done(self, state: SGMCMCState) -> Bool[Array, ""]:
        """A chain stops when it has left the finite numbers."""
        return state.nonfinite_at != -1

    def result(self, state: SGMCMCState) -> RESULTS:
        failed = RESULTS.where(
            state.nonfinite_at == -2, RESULTS.nonfinite_start, RESULTS.nonfinite_state
        )
        return RESULTS.where(state.nonfinite_at == -1, RESULTS.successful, failed)

    def explain(self, target: AbstractTarget, state: SGMCMCState) -> str:
        """Say which step sizes would have been stable where the chains ended.

        Args:
            target: The target density.
            state: Final states of all chains, leading axis first.
        """
        failed = np.any(np.asarray(state.nonfinite_at) >= 0)
        return describe_stability(self, target, state) if failed else ""

    def posterior(
        self, target: AbstractTarget, state: SGMCMCState, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        if trace.sampling is None:
            raise ValueError("The run ended within `warmup` and made no draw.")
        warmup = trace.warmup if self.keep_warmup else None
        positions, stats = trace.sampling.position, trace.sampling.stats
        # A draw stands for the time until the next: Welling and Teh (2011), equation 11.
        times = np.asarray(stats["step_size"], np.float64)
        weights = times / times.sum(axis=1, keepdims=True) / len(times)
        return Sample(
            positions,
            stats,
            log_weights=np.log(weights) if np.ptp(times, axis=1).any() else None,
            record=checked(self, target, state, trace.sampling, weights, key=key),
            warmup_positions=None if warmup is None else warmup.position,
            warmup_stats=None if warmup is None else warmup.stats,
            method="unadjusted",
        )

    def _progress(self, index: Array, dtype) -> Scalar:
        """Return how much of the way in is done: 1 from half of warm-up on."""
        return jnp.minimum(2 * index.astype(dtype) / max(self.schedule.warmup, 1), 1)

    def _pace(self, target, tuning: Tuning | None, index, dtype) -> tuple[Scalar, Scalar]:
        """Return step size and friction as they are by now."""
        parts = self.parts
        if self.step_size is None:
            assert tuning is not None
            epoch = batches_per_epoch(parts.gradient, target)
            settled = chosen(tuning, parts.friction, parts.word, epoch)
            progress = self._progress(index, dtype)
            return descending(tuning, settled, parts.friction, parts.word, progress)
        friction = DEFAULT_DAMPING / self.step_size
        friction = friction if parts.friction is None else parts.friction
        return jnp.asarray(self.step_size, dtype), jnp.asarray(friction, dtype)

    def _heat(self, counter: Array, dtype) -> Scalar:
        """Return the temperature at an update."""
        heat, decay = jnp.asarray(self.temperature, dtype), self.parts.decay
        if not isinstance(decay, Cyclical):
            return heat
        return jnp.where(decay.explores(counter, self._block), 0, heat)

    def _updates(self, index: Array) -> tuple[Array, Any]:
        """Return the number of the first update of a step of the loop, and how many it has."""
        block, decay = self._block, self.parts.decay
        if not isinstance(decay, Cyclical):
            return index * block, block
        lead, draws = decay.layout(block)
        cycle, place = index // draws, index % draws
        first = cycle * decay.period + jnp.where(place > 0, lead + place * block, 0)
        return first, jnp.where(place > 0, block, lead + block)

    def _searched(
        self, space: Space, state: SGMCMCState, flat: Vector, index, first, *, key
    ) -> tuple[Tuning | None, Any]:
        """Return the search for step size and units after this step's look, in warm-up."""
        tuning, scale, parts = state.tuning, state.scale, self.parts
        if tuning is None:
            return None, scale
        key_batch, key_signs = jr.split(jr.fold_in(key, APART))
        product = parts.product(space, state.epoch, first, key_batch, flat)
        iterations = jnp.where(index == 0, FIRST, LATER)
        descends = self._progress(index, flat.dtype) < 1
        search = partial(look, tuning, product, parts.preconditioner, scale)
        return jax.lax.cond(
            index < self.schedule.warmup,
            lambda: search(iterations, descends, key=key_signs),
            lambda: (tuning, scale),
        )
