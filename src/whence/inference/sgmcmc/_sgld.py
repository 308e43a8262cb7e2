"""Stochastic gradient Langevin dynamics (Welling and Teh 2011)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...core._convert import flag, one_of, part, positive, whole
from ...core._data import BATCHING, Epoch, log_density_estimate
from ...core._engine import AbstractOnlineEngine, Info, Sample, Schedule, Trace
from ...core._flat import flat_view
from ...core._results import RESULTS
from ...core._rows import check_rows
from ...core._start import find_start
from ...core._target import AbstractDataTarget, AbstractTarget
from ...core._types import Position, PRNGKey, Scalar
from .._inflation import inflation
from ._decay import AbstractDecay, ConstantStep
from ._gradient import MinibatchGradient
from ._integrator import langevin
from ._preconditioner import AbstractPreconditioner, Identity

DEFAULT_DRAWS = 1_000  # draws recorded per chain if `thin` is not given


class SGLDState(eqx.Module):
    """What the next step needs.

    Attributes:
        position: The present position; the last finite one if the chain has stopped.
        epoch: State of the gradient estimate.
        scale: State of the preconditioner.
        nonfinite_at: Number of the first update that left the finite numbers; -1 if none
            did, and -2 if no start with a finite log density was found.
    """

    position: Position
    epoch: Epoch
    scale: PyTree
    nonfinite_at: Int[Array, ""]


class _Update(eqx.Module):
    """The moving parts of an update, and the last one's start with what was found there.

    Positions and gradients are single vectors: what is done to every coordinate is then one
    operation and not one per array of a network.
    """

    position: Float[Array, " dim"]
    epoch: Epoch
    scale: PyTree
    finite: Int[Array, ""]  # updates of this block before the first that failed
    start: Float[Array, " dim"]
    log_density: Scalar
    gradient: Float[Array, " dim"]


class SGLD(AbstractOnlineEngine):
    """Langevin dynamics with the gradient of a minibatch and no accept-reject step.

    An update is `x + h G g + sqrt(2 h G) noise`, with `g` an estimate of the gradient of
    the log density on all data. Its bias does not vanish at a fixed step size: in a
    direction of precision `a`, with gradient noise of variance `V` that is independent
    between updates, the stationary variance is `(1 + h V / 2) / (1 - h a / 2) / a`, and
    the chain is stable for `h < 2 / a`. Reshuffled batches have a smaller error than
    independent ones. R-hat and effective sample size do not see this bias; `diagnose` does,
    by the gradient at some of the draws (`record.inflation`, the variance in units of the
    target's), for a tenth of the work of the run.

    One recorded draw is made of `thin` updates. `stats` holds `lp` and `grad_norm` (both
    estimates, at the draw), `step_size`, and `nonfinite_at`, the number of the update
    after which the chain was no longer finite (-1 if it always was). With a `decay` draws are
    weighted by their step size.

    Attributes:
        chains: Independent chains.
        steps: Updates per chain, warm-up included; rounded down to a multiple of `thin`.
        batch_size: Rows of data per update; None for all, which needs no data target.
        step_size: `h`. None takes `0.1 * batch_size / num_data**2`, which for one unit of
            Fisher information per row inflates the variance by about 5% of it and forgets
            in about 20 epochs.
        decay: How the step size falls.
        preconditioner: `Identity()` or `RMSprop()`.
        thin: Updates per recorded draw; None records at most 1000 draws.
        warmup: Updates at the start that are not draws; None is a fifth of `steps`.
        batching: `"reshuffle"` (without replacement) or `"iid"`.
        keep_warmup: Whether to keep the draws of warm-up.

    References:
        Welling and Teh (2011), "Bayesian learning via stochastic gradient Langevin
        dynamics", ICML.
        Vollmer, Zygalakis and Teh (2016), "Exploration of the (non-)asymptotic bias and
        variance of stochastic gradient Langevin dynamics", JMLR 17(159).
    """

    chains: int = eqx.field(default=4, converter=whole("chains", least=1))
    steps: int = eqx.field(default=50_000, converter=whole("steps", least=1))
    batch_size: int | None = eqx.field(
        default=None, converter=whole("batch_size", least=1, optional=True)
    )
    step_size: float | None = eqx.field(
        default=None, converter=positive("step_size", optional=True)
    )
    decay: AbstractDecay = eqx.field(
        default=ConstantStep(), converter=part("decay", AbstractDecay)
    )
    preconditioner: AbstractPreconditioner = eqx.field(
        default=Identity(), converter=part("preconditioner", AbstractPreconditioner)
    )
    thin: int | None = eqx.field(default=None, converter=whole("thin", least=1, optional=True))
    warmup: int | None = eqx.field(
        default=None, converter=whole("warmup", least=0, optional=True)
    )
    batching: str = eqx.field(default="reshuffle", converter=one_of("batching", BATCHING))
    keep_warmup: bool = eqx.field(default=False, converter=flag("keep_warmup"))

    def __check_init__(self):
        if self.schedule.steps <= self.schedule.warmup:
            raise ValueError(
                "`steps` must leave at least one draw after `warmup`; got "
                f"`steps={self.steps}`, `warmup={self.warmup}`, `thin={self.thin}`."
            )

    @property
    def name(self) -> str:
        return "SGLD"

    @property
    def schedule(self) -> Schedule:
        """One step of the loop is `thin` updates."""
        warmup = self.steps // 5 if self.warmup is None else self.warmup
        return Schedule(
            replicas=self.chains,
            warmup=-(-warmup // self._block),
            steps=self.steps // self._block,
            extendable=True,
            rows_per_step=(self.batch_size or 0) * self._block,
        )

    @property
    def _block(self) -> int:
        return self.thin or -(-self.steps // DEFAULT_DRAWS)

    @property
    def _gradient(self) -> MinibatchGradient:
        return MinibatchGradient(self.batch_size, self.batching)

    def validate(self, target: AbstractTarget) -> None:
        """Raise `ValueError` unless the target has the data and the step size is known.

        Args:
            target: The target density.

        Raises:
            ValueError: If `batch_size` is more than the data have, or `step_size` is None
                and there is nothing to take it from.
        """
        self._gradient.batches(target)
        self._step_size(target)
        check_rows(target, self.batch_size)

    def validate_online(self, target: AbstractTarget) -> None:
        self.validate(target)

    def draw(self, target: AbstractTarget, state: SGLDState, *, key: PRNGKey) -> Position:
        return state.position

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> SGLDState:
        size = self.batch_size
        rows = None if size is None else jnp.arange(size, dtype=jnp.int32)

        def attempt(key):
            position = target.init(key=key)
            return position, jnp.isfinite(log_density_estimate(target, position, rows))

        zeros, unravel = flat_view(target)
        position, finite = find_start(attempt, unravel(zeros), key=key)
        return SGLDState(
            position,
            self._gradient.init(target),
            self.preconditioner.init(ravel_pytree(position)[0]),
            jnp.where(finite, -1, -2).astype(jnp.int32),
        )

    def step(
        self, target: AbstractTarget, state: SGLDState, index: Array, *, key: PRNGKey
    ) -> tuple[SGLDState, Info]:
        """Make `thin` updates and record the position from which the last one started."""
        first = index * self._block
        flat, form = ravel_pytree(state.position)
        h = self._step_size(target)

        def update(i: Array, last: _Update) -> _Update:
            key_batch, key_noise = jr.split(jr.fold_in(key, i))
            counter = first + i
            log_density, gradient, epoch = self._gradient.estimate(
                target, last.position, form, last.epoch, counter, key=key_batch
            )
            matrix, scale = self.preconditioner.update(last.scale, gradient)
            step_size = h * self.decay.factor(counter, flat.dtype)
            position = langevin(last.position, gradient, matrix, step_size, key=key_noise)
            ok = jnp.isfinite(log_density) & jnp.all(jnp.isfinite(position))
            return _Update(
                position,
                epoch,
                scale,
                last.finite + (ok & (last.finite == i)).astype(jnp.int32),
                last.position,
                log_density.astype(flat.dtype),
                gradient,
            )

        begin = _Update(
            flat,
            state.epoch,
            state.scale,
            jnp.zeros((), jnp.int32),
            flat,
            jnp.zeros((), flat.dtype),
            jnp.zeros_like(flat),
        )
        last = jax.lax.fori_loop(0, self._block, update, begin)
        alive = state.nonfinite_at == -1
        whole = alive & (last.finite == self._block)
        failed_at = jnp.where(alive, first + last.finite, state.nonfinite_at)
        failed_at = jnp.where(whole, -1, failed_at).astype(jnp.int32)
        keep, draw = (form(jnp.where(whole, x, flat)) for x in (last.position, last.start))
        new = SGLDState(keep, last.epoch, last.scale, failed_at)
        stats = {
            "lp": last.log_density,
            "grad_norm": jnp.linalg.norm(last.gradient),
            "step_size": h * self.decay.factor(first + self._block - 1, flat.dtype),
            "nonfinite_at": failed_at,
        }
        return new, Info(draw, stats)

    def done(self, state: SGLDState) -> Bool[Array, ""]:
        """A chain stops when it has left the finite numbers."""
        return state.nonfinite_at != -1

    def result(self, state: SGLDState) -> RESULTS:
        failed = RESULTS.where(
            state.nonfinite_at == -2, RESULTS.nonfinite_start, RESULTS.nonfinite_state
        )
        return RESULTS.where(state.nonfinite_at == -1, RESULTS.successful, failed)

    def posterior(
        self, target: AbstractTarget, state: SGLDState, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        if trace.sampling is None:
            raise ValueError("The run ended within `warmup` and made no draw.")
        warmup = trace.warmup if self.keep_warmup else None
        positions, stats = trace.sampling.position, trace.sampling.stats
        # A draw stands for the time until the next: Welling and Teh (2011), equation 11.
        times = np.asarray(stats["step_size"], np.float64)
        weights = times / times.sum()
        size = self.batch_size
        rows = None if size is None else size * self._block * times.size
        return Sample(
            positions,
            stats,
            log_weights=None if np.ptp(times) == 0 else np.log(weights),
            record=inflation(target, positions, weights, rows, key=key),
            warmup_positions=None if warmup is None else warmup.position,
            warmup_stats=None if warmup is None else warmup.stats,
            method="unadjusted",
        )

    def _step_size(self, target: AbstractTarget) -> float:
        if self.step_size is not None:
            return self.step_size
        num_data = target.num_data if isinstance(target, AbstractDataTarget) else None
        if num_data is None or not isinstance(self.preconditioner, Identity):
            raise ValueError(
                "`step_size` must be given unless the target has data rows and there is no "
                f"preconditioner; got None with {type(target).__name__} and "
                f"{type(self.preconditioner).__name__}."
            )
        return 0.1 * (self.batch_size or num_data) / num_data**2
