"""Black-box variational inference: a parametric family fitted by stochastic gradients."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Int, PyTree

from ...core._convert import one_of, part, positive, whole
from ...core._data import BATCHING, Epoch, Minibatches, log_density_estimate, minibatches
from ...core._dtype import relaxed
from ...core._engine import AbstractOnlineEngine, Info, Sample, Schedule, Trace
from ...core._flat import flat_init, flat_view
from ...core._results import RESULTS
from ...core._rows import check_rows
from ...core._start import MAX_STARTS
from ...core._target import AbstractTarget
from ...core._types import Position, PRNGKey, Scalar
from ...diagnostics._records import VariationalFit
from ._estimator import AbstractEstimator, PathDerivative
from ._family import AbstractFamily, MeanField
from ._final import draw, num_checked
from ._flat import layout_of, on_flat
from ._optimizer import default_optimizer
from ._pace import Pace, advance, start_pace

MAX_FAILURES = 20  # updates in a row without a finite gradient before it gives up
# Updates and epochs, the larger, over which steps fall to zero. A regression on 20,000 rows in
# batches of 200 was left 0.1 to 0.2 nats below its best ELBO by 1,000, 0.02 to 0.12 by 2,000.
FALL, FALL_EPOCHS = 2_000, 10
DEFAULT_RECORDS = 2_000  # values in the trace of the ELBO, at most


class BBVIState(eqx.Module):
    """What the next step needs.

    Attributes:
        params: Parameters of the family.
        optimizer: State of the optimiser.
        epoch: Running epoch of the minibatches.
        num_updates: Updates made.
        num_nonfinite: Updates left out because their gradient was not finite.
        failures: How many of these came last, in a row.
        pace: How far the fit has come.
    """

    params: PyTree
    optimizer: PyTree
    epoch: Epoch
    num_updates: Int[Array, ""]
    num_nonfinite: Int[Array, ""]
    failures: Int[Array, ""]
    pace: Pace


class BBVI(AbstractOnlineEngine):
    """Fit a family `q` to the target by maximising the ELBO, `E_q[log p - log q]`.

    The draws are independent draws from the fitted family, equally weighted; they are draws
    from the target only as far as the family allows. `Posterior.diagnose` judges that by
    the tail of the importance ratios (Pareto k-hat). `extra` holds `elbo` (the trace, one
    mean per recorded step), `family` (the fitted parameters), `num_nonfinite` (updates left
    out for want of a finite gradient) and, of the draws that were checked on all data,
    `log_weights_is` (`log p - log q` per draw) and their mean `elbo_final` with
    `elbo_final_error`. `stats` holds `lp` if all draws were.

    Attributes:
        family: `MeanField()`, `FullRank()`, or one that speaks of latents by name:
            `Factors(...)`, `ScaleMixtureFamily(...)`.
        steps: Updates of the parameters, at most: a fit ends when its family has come to rest
            (see `_pace.py`), unless there are `restarts` or an `optimizer`.
        samples: Draws of noise per update.
        learning_rate: Size of the steps until the family rests; then, or for the last half of
            `steps` at the latest, they fall to zero. For a location this is in units of its
            scale; for a scale, of its logarithm; for a `Point`, of the position.
        optimizer: An optax transform instead, of gradients alone; `learning_rate` is then
            unused.
        estimator: `PathDerivative()` or `ClosedFormEntropy()`.
        batch_size: Rows of data per update; None for all.
        batching: `"reshuffle"` (without replacement) or `"iid"`.
        draws: Draws from the fitted family.
        checked: How many of them get an importance ratio, which takes the log density on all
            data; 0 for none, None for as many as 2e8 likelihoods of single rows allow, and
            none if these are fewer than 100.
        restarts: Independent fits; the one with the best ELBO is kept.

    References:
        Ranganath, Gerrish and Blei (2014), "Black box variational inference", AISTATS.
        Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), "Automatic differentiation
        variational inference", JMLR 18(14).
        Yao, Vehtari, Simpson and Gelman (2018), "Yes, but did it work? Evaluating
        variational inference", ICML.
    """

    family: AbstractFamily = eqx.field(
        default=MeanField(), converter=part("family", AbstractFamily)
    )
    steps: int = eqx.field(default=10_000, converter=whole("steps", least=1))
    samples: int = eqx.field(default=10, converter=whole("samples", least=1))
    learning_rate: float = eqx.field(default=0.1, converter=positive("learning_rate"))
    optimizer: Any = None
    estimator: AbstractEstimator = eqx.field(
        default=PathDerivative(), converter=part("estimator", AbstractEstimator)
    )
    batch_size: int | None = eqx.field(
        default=None, converter=whole("batch_size", least=1, optional=True)
    )
    batching: str = eqx.field(default="reshuffle", converter=one_of("batching", BATCHING))
    draws: int = eqx.field(default=4_000, converter=whole("draws", least=1))
    checked: int | None = eqx.field(
        default=None, converter=whole("checked", least=0, optional=True)
    )
    restarts: int = eqx.field(default=1, converter=whole("restarts", least=1))

    def __check_init__(self):
        if self.optimizer is not None and not (
            hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")
        ):
            raise ValueError(
                "`optimizer` must be an optax transform, with `init` and `update`; got "
                f"{self.optimizer!r}."
            )

    @property
    def name(self) -> str:
        return "BBVI"

    @property
    def schedule(self) -> Schedule:
        """One step of the loop is some updates and one value of the ELBO."""
        rows = (self.batch_size or 0) * self._block
        return Schedule(self.restarts, 0, self.steps // self._block, rows_per_step=rows)

    @property
    def _block(self) -> int:
        return -(-self.steps // DEFAULT_RECORDS)

    def validate(self, target: AbstractTarget) -> None:
        self._family(target)
        self._batches(target)
        check_rows(target, self.batch_size)

    def validate_online(self, target: AbstractTarget) -> None:
        """Raise `ValueError` as `validate` does, or if learning would come to an end.

        Args:
            target: The target density.

        Raises:
            ValueError: If there is no `optimizer`.
        """
        if self.optimizer is None:
            raise ValueError(
                "`optimizer` must be given where data go on coming, such as "
                "`optax.adam(0.01)`: by default the learning rate falls to zero within the "
                f"{self.steps} updates of `steps`. Got None."
            )
        self.validate(target)

    def draw(self, target: AbstractTarget, state: BBVIState, *, key: PRNGKey) -> Position:
        location, unravel = flat_view(target)
        family = self._family(target)
        noise = jax.tree.map(lambda x: x[0], family.noise(location, 1, key=key))
        return unravel(family.transform(state.params, noise))

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> BBVIState:
        """Return a placeholder of the right form; step 0 finds the location."""
        family = self._family(target)
        params = family.init(flat_view(target)[0])
        zero = jnp.zeros((), jnp.int32)
        epoch = self._batches(target).init()
        with relaxed():
            optimizer = self._optimizer.init(family.no_step(params))
        pace = start_pace(params, self.steps, self._fall(target))
        return BBVIState(params, optimizer, epoch, zero, zero, zero, pace)

    def step(
        self, target: AbstractTarget, state: BBVIState, index: Array, *, key: PRNGKey
    ) -> tuple[BBVIState, Info]:
        """Make some updates and record the mean of their estimates of the ELBO."""
        first = index * self._block
        key_start, key_updates = jr.split(key)

        def attempt(carry):
            tries, _, _ = carry
            begin = jax.lax.cond(
                index == 0,
                lambda: self._start(target, state, jr.fold_in(key_start, tries)),
                lambda: state,
            )
            update = lambda i, now: self._update(
                target, now, first + i, key=jr.fold_in(key_updates, i)
            )
            zero = jnp.zeros((), flat_view(target)[0].dtype)
            return tries + 1, *jax.lax.fori_loop(0, self._block, update, (begin, zero))

        def again(carry):
            tries, new, _ = carry
            hopeless = (index == 0) & (new.num_updates == 0) & (tries < MAX_STARTS)
            return (tries == 0) | hopeless

        # A start without a finite gradient is replaced by another. As a loop around the
        # updates this takes no second copy of the gradient in the program.
        total = jnp.zeros((), flat_view(target)[0].dtype)
        _, new, total = jax.lax.while_loop(again, attempt, (jnp.int32(0), state, total))
        made = new.num_updates - jnp.where(index == 0, 0, state.num_updates)
        elbo = total / made.astype(total.dtype)
        stats: dict[str, Any] = {"elbo": elbo, "num_nonfinite": new.num_nonfinite}
        return new, Info(None, stats)

    def done(self, state: BBVIState) -> Bool[Array, ""]:
        """A fit stops when it has come to rest, or when gradients stay non-finite."""
        made = state.num_updates + state.num_nonfinite
        arrived = self._may_end_early & (made >= state.pace.ends_at)
        return arrived | (state.failures >= MAX_FAILURES)

    def result(self, state: BBVIState) -> RESULTS:
        failed = RESULTS.where(
            state.num_updates == 0, RESULTS.nonfinite_start, RESULTS.nonfinite_state
        )
        return RESULTS.where(state.failures >= MAX_FAILURES, failed, RESULTS.successful)

    def posterior(
        self, target: AbstractTarget, state: BBVIState, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        if trace.sampling is None:
            raise ValueError("The run ended before its first step; there is no fit.")
        elbo = np.asarray(trace.sampling.stats["elbo"])
        tail = elbo[:, -max(1, elbo.shape[1] // 10) :].mean(1)
        best = int(np.argmax(np.nan_to_num(tail, nan=-np.inf)))
        params = jax.tree.map(lambda x: jnp.asarray(x[best]), state.params)
        family = self._family(target)
        sizes = (self.draws, num_checked(target, self.draws, self.checked))
        drawn = draw(family, params, target, sizes, self.batch_size is not None, key)
        positions, log_density, log_weights = jax.tree.map(lambda x: np.asarray(x)[None], drawn)
        fit = VariationalFit(
            elbo=elbo[best],
            parameters=jax.tree.map(np.asarray, family.describe(params)),
            num_nonfinite=int(state.num_nonfinite[best]),
        )
        if log_weights.size:
            error = log_weights.std() / np.sqrt(log_weights.size)
            fit = dataclasses.replace(
                fit,
                log_weights_is=log_weights,
                elbo_final=float(log_weights.mean()),
                elbo_final_error=float(error),
            )
        whole = log_weights.size == self.draws
        stats = {"lp": log_density} if whole else {}
        return Sample(positions, stats, method="variational", record=fit)

    def _fall(self, target: AbstractTarget) -> int:
        """Updates with falling steps; half of a short fit."""
        wanted = max(FALL, FALL_EPOCHS * self._batches(target).per_epoch)
        return min(wanted, max(1, self.steps // 2))

    @property
    def _may_end_early(self) -> bool:
        # Traces of several fits are compared, so these have one length.
        return self.optimizer is None and self.restarts == 1

    def _start(self, target: AbstractTarget, state: BBVIState, key: PRNGKey) -> BBVIState:
        params = self._family(target).init(flat_init(target, key=key))
        pace = start_pace(params, self.steps, self._fall(target))
        return eqx.tree_at(lambda s: (s.params, s.pace), state, (params, pace))

    def _update(
        self,
        target: AbstractTarget,
        now: tuple[BBVIState, Scalar],
        counter: Int[Array, ""],
        *,
        key: PRNGKey,
    ) -> tuple[BBVIState, Scalar]:
        """Make one update, unless its gradient is not finite, and add up the ELBO."""
        state, total = now
        key_noise, key_batch = jr.split(key)
        location, _ = flat_view(target)
        family = self._family(target)
        noise = family.noise(location, self.samples, key=key_noise)
        rows, epoch = self._batches(target).next(state.epoch, counter, key=key_batch)
        density = lambda position: log_density_estimate(target, position, rows)
        log_weights, gradient = self.estimator.estimate(
            family,
            state.params,
            lambda x: jax.vmap(on_flat(density, family, target, x[0]))(x),
            noise,
        )
        elbo = log_weights.mean()
        flat, _ = ravel_pytree(gradient)
        finite = jnp.isfinite(elbo) & jnp.all(jnp.isfinite(flat))
        descent = jax.tree.map(jnp.negative, gradient)
        updates, optimizer = self._steps(descent, state, counter)
        params = family.move(state.params, updates)
        params, optimizer = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, optimizer),
            (state.params, state.optimizer),
        )
        pace = state.pace
        if self._may_end_early:
            pace = advance(pace, family, params, counter, location)
        new = BBVIState(
            params,
            optimizer,
            epoch,
            state.num_updates + finite.astype(jnp.int32),
            state.num_nonfinite + (~finite).astype(jnp.int32),
            jnp.where(finite, 0, state.failures + 1),
            pace,
        )
        return new, total + jnp.where(finite, elbo, 0)

    def _family(self, target: AbstractTarget) -> AbstractFamily:
        return self.family.bind(layout_of(target))

    def _batches(self, target: AbstractTarget) -> Minibatches:
        return minibatches(target, self.batch_size, self.batching)

    @property
    def _optimizer(self) -> Any:
        own = self.optimizer
        return default_optimizer(self.learning_rate) if own is None else own

    def _steps(self, descent: PyTree, state: BBVIState, counter) -> tuple[PyTree, PyTree]:
        """Return the steps of an update and the new state of the optimiser."""
        if self.optimizer is not None:
            with relaxed():
                return self.optimizer.update(descent, state.optimizer)
        falling = counter >= state.pace.falls_at
        with relaxed():
            steps, new = self._optimizer.update(descent, state.optimizer, falling=falling)
        factor = state.pace.factor(counter)
        return jax.tree.map(lambda x: factor.astype(x.dtype) * x, steps), new
