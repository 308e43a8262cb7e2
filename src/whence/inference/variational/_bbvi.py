"""Black-box variational inference: a parametric family fitted by stochastic gradients."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Int, PyTree

from ...core._convert import flag, one_of, part, positive, whole
from ...core._data import BATCHING, Minibatches, minibatches
from ...core._engine import AbstractOnlineEngine, Info, Sample, Schedule, Trace
from ...core._family import OfBatches, bound
from ...core._flat import flat_init, flat_view
from ...core._key import as_key
from ...core._results import RESULTS
from ...core._rows import check_rows
from ...core._start import MAX_STARTS
from ...core._target import AbstractTarget
from ...core._types import Position, PRNGKey, Scalar
from ...diagnostics._records import VariationalFit
from ._anchor import Anchor, renewed, start_anchor
from ._batch import Batch, check_parts
from ._estimator import AbstractEstimator, PathDerivative
from ._family import AbstractFamily, AbstractGaussian, MeanField
from ._final import bound_of, draw, log_weights, num_checked
from ._flat import layout_of
from ._local import Local, has_kind, has_rows, split_tables, with_rows
from ._objective import ELBO, AbstractObjective, some_draws
from ._optimizer import default_optimizer, optimizer_steps, start_optimizer, updated
from ._pace import advance, start_pace
from ._state import BBVIState, Run
from ._terms import as_terms, evaluate
from ._update import AbstractUpdate
from ._variance import is_bounded, variance_and_bound
from ._watch import LOOK, GradientNoise, Watch, averaged

MAX_FAILURES = 20  # updates in a row without a finite gradient before it gives up
# Updates and epochs, the larger, over which steps fall to zero. A regression on 20,000 rows in
# batches of 200 was left 0.1 to 0.2 nats below its best ELBO by 1,000, 0.02 to 0.12 by 2,000.
FALL, FALL_EPOCHS = 2_000, 10
DEFAULT_RECORDS = 2_000  # values in the trace of the ELBO, at most


class BBVI(AbstractOnlineEngine):
    """Fit a family `q` to the target by maximising the ELBO, `E_q[log p - log q]`.

    Four parts make a method: family, objective, estimator of its gradient, update. Larger is
    better for all objectives, in nats.

    The draws are independent draws from the fitted family, equally weighted; they are draws
    from the target only as far as the family allows. `Posterior.diagnose` judges that by
    the tail of the importance ratios (Pareto k-hat). `extra` holds `elbo` (the trace, one
    mean per recorded step), `family` (the fitted parameters), `num_nonfinite` (updates left
    out for want of a finite gradient) and, of the draws that were checked on all data,
    `log_weights_is` (`log p - log q` per draw) and their mean `elbo_final` with
    `elbo_final_error`. `stats` holds `lp` if all draws were.

    Attributes:
        family: `MeanField()`, `FullRank()`, `LowRank()`, `Flow()`, `Gamma()`, or one that
            speaks of latents by name: `Factors(...)`, `ScaleMixtureFamily(...)`; for local
            latents `Local()` or `Amortised(...)`.
        steps: Updates of the parameters, at most: a fit ends when its family has come to rest
            (see `_pace.py`), unless there are `restarts` or an `optimizer`.
        samples: Draws of noise per update, of all groups of the objective together.
        learning_rate: Size of the steps until the family rests; then, or for the last half of
            `steps` at the latest, they fall to zero. For a location this is in units of its
            scale; for a scale, of its logarithm; for a `Point`, of the position.
        optimizer: An optax transform instead, of gradients alone; `learning_rate` is then
            unused. The fit is then stopped if it diverges, and the best parameters kept.
        update: Another way to change the parameters, `Proximal(...)` or `BuresWasserstein()`;
            it has steps and gradients of its own, for the `ELBO`, and falls as steps do.
        objective: `ELBO()`, `IWAE()`, `MIWAE()`, `PIWAE()`, `CIWAE()`, `Renyi()`,
            `LogVariance()` or `ForwardKL()`.
        estimator: `PathDerivative()`, `TotalDerivative()`, `ClosedFormEntropy()`,
            `ScoreFunction()` or `RejectionSampling()`.
        average: Whether the fit is the mean of the parameters over the second half of `steps`;
            for an own `optimizer` with steps that do not fall.
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
    update: AbstractUpdate | None = eqx.field(
        default=None, converter=lambda u: u if u is None else part("update", AbstractUpdate)(u)
    )
    objective: AbstractObjective = eqx.field(
        default=ELBO(), converter=part("objective", AbstractObjective)
    )
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
    average: bool = eqx.field(default=False, converter=flag("average"))

    def __check_init__(self):
        if self.optimizer is not None and not (
            hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")
        ):
            raise ValueError(
                "`optimizer` must be an optax transform, with `init` and `update`; got "
                f"{self.optimizer!r}."
            )
        if self.update is None:
            self.objective.check(self.samples)
        elif self.optimizer is not None or not isinstance(self.objective, ELBO):
            raise ValueError(
                "`update` has steps of its own, along the `ELBO`: leave `optimizer` and "
                f"`objective` as they are; got {self.update!r}."
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
        family = self._family(target)
        check_parts(target, family, self.objective, self.batch_size)
        if self.update is not None:
            self.update.check(family)
        else:
            self.estimator.check(self.objective, family, self.samples)
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
        if has_kind(self.family, Local):
            raise ValueError(
                "`Local` has parameters for each data row, whose number must not change where "
                "data go on coming: use `Amortised(...)`."
            )
        self.validate(target)

    def draw(self, target: AbstractTarget, state: BBVIState, *, key: PRNGKey) -> Position:
        location, unravel = flat_view(target)
        family, params = Batch.of(target, self.family, state.params, None)[2:4]
        noise = jax.tree.map(lambda x: x[0], family.noise(location, 1, key=key))
        return unravel(family.transform(params, noise))

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> BBVIState:
        """Return a placeholder of the right form; step 0 finds the location."""
        family = self._family(target)
        params = family.init(flat_view(target)[0])
        zero = jnp.zeros((), jnp.int32)
        epoch = self._batches(target).init()
        optimizer = start_optimizer(self._optimizer, family, params)
        return BBVIState(
            params, optimizer, epoch, zero, zero, zero, *self._records(target, params)
        )

    def step(
        self, target: AbstractTarget, state: BBVIState, index: Array, *, key: PRNGKey
    ) -> tuple[BBVIState, Info]:
        """Make some updates and record the mean of their estimates of the ELBO."""
        key_start, key_noise, key_rows = jr.split(key, 3)
        like, falls_at = flat_view(target)[0], state.pace.falls_at
        counters = index * self._block + jnp.arange(self._block, dtype=jnp.int32)
        rows = None if self.batch_size is None else jnp.zeros(self.batch_size, jnp.int32)
        batch = Batch.of(target, self.family, state.params, rows)
        noise = batch.noise(self._block, self.samples, key_noise)
        factors = state.pace.factor(counters).astype(like.dtype)
        given = (counters, factors, noise, jr.split(key_rows, self._block))
        sizes = self.steps, self._block, self.samples, self.batch_size or 0
        at = self._family(target), state.params, index
        anchor = renewed(
            state.anchor, target, *at, sizes, key=jr.fold_in(key_rows, self._block)
        )

        def attempt(carry):
            tries, *_ = carry
            start = lambda: self._start(target, jr.fold_in(key_start, tries))
            params = jax.lax.cond(index == 0, start, lambda: state.params)
            update = lambda run, own: self._update(target, falls_at, anchor, run, *own)
            run, elbos = jax.lax.scan(update, Run(params, *rest), given)
            return tries + 1, watched(params), run, elbos

        def again(carry):
            tries, *_, elbos = carry
            hopeless = (index == 0) & jnp.all(jnp.isnan(elbos))
            return (tries == 0) | (hopeless & (tries < MAX_STARTS))

        # A start without a finite gradient is replaced by another. As a loop around the
        # updates this takes no second copy of the gradient in the program.
        watched = lambda params: None if state.watch is None else params
        rest = state.optimizer, state.epoch, jnp.zeros_like(state.gradient.mean)
        carry = jnp.int32(0), watched(state.params), Run(state.params, *rest), 0 * factors
        _, begin, run, elbos = jax.lax.while_loop(again, attempt, carry)
        new = self._after(target, state, begin, run, jnp.isnan(elbos), index, anchor)
        stats: dict[str, Any] = {"elbo": jnp.nanmean(elbos)}
        stats |= {"num_nonfinite": new.num_nonfinite, "gradient_signal": new.gradient.signal}
        return new, Info(None, stats)

    def done(self, state: BBVIState) -> Bool[Array, ""]:
        """A fit stops when it has come to rest, or when gradients stay non-finite."""
        made = state.num_updates + state.num_nonfinite
        arrived = self._may_end_early & (made >= state.pace.ends_at)
        left = False if state.watch is None else state.watch.left_at >= 0
        return arrived | (state.failures >= MAX_FAILURES) | left

    def result(self, state: BBVIState) -> RESULTS:
        failed = RESULTS.where(
            state.num_updates == 0, RESULTS.nonfinite_start, RESULTS.nonfinite_state
        )
        is_lost = state.failures >= MAX_FAILURES
        if state.watch is not None:
            is_lost &= ~state.watch.has_seen
        return RESULTS.where(is_lost, failed, RESULTS.successful)

    def posterior(
        self, target: AbstractTarget, state: BBVIState, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        if trace.sampling is None:
            raise ValueError("The run ended before its first step; there is no fit.")
        elbo = np.asarray(trace.sampling.stats["elbo"])
        tail = elbo[:, -max(1, elbo.shape[1] // 10) :].mean(1)
        best = int(np.argmax(np.nan_to_num(tail, nan=-np.inf)))
        params, diverged = self._chosen(jax.tree.map(lambda x: jnp.asarray(x[best]), state))
        family = self._family(target)
        sizes = (self.draws, num_checked(target, self.draws, self.checked))
        drawn = draw(self.family, params, target, sizes, self.batch_size is not None, key)
        positions, log_density, log_weights = jax.tree.map(lambda x: np.asarray(x)[None], drawn)
        known = bool(log_weights.size)
        spread, most = None, None
        if is_bounded(self, family):
            spread, most = variance_and_bound(family, params, target, jr.fold_in(key, 1))
        fit = VariationalFit(
            elbo=elbo[best],
            log_weights_is=log_weights if known else None,
            parameters=jax.tree.map(np.asarray, family.describe(params)),
            elbo_final=float(log_weights.mean()) if known else None,
            elbo_final_error=float(log_weights.std() / len(log_weights[0]) ** 0.5)
            if known
            else None,
            num_nonfinite=int(state.num_nonfinite[best]),
            objective=type(self.objective).__name__,
            fitted=jax.tree.map(np.asarray, params),
            diverged=diverged,
            gradient_signal=None
            if self.update is not None
            else float(trace.sampling.stats["gradient_signal"][best, -1]),
            gradient_variance=spread,
            gradient_bound=most,
        )
        whole = log_weights.size == self.draws
        stats = {"lp": log_density} if whole else {}
        return Sample(positions, stats, method="variational", record=fit)

    def bound(
        self,
        target: AbstractTarget,
        fit: VariationalFit,
        *,
        objective: AbstractObjective | None = None,
        samples: int = 100,
        key: PRNGKey | int,
    ) -> np.ndarray:
        """Return an objective of a fitted family, on this target or on other data rows.

        Args:
            target: A target like that of the fit; with `Amortised` it may have other rows.
            fit: `posterior.record`.
            objective: By default that of the fit.
            samples: Draws of the family, of all groups of the objective together.
            key: A typed key, or a whole number.

        Returns:
            A number, in nats; where latents are local, one for each data row, of its own
            terms.
        """
        objective = self.objective if objective is None else objective
        objective.check(samples)
        params = jax.tree.map(jnp.asarray, fit.fitted)
        return np.asarray(
            bound_of(self.family, params, target, objective, samples, as_key(key))
        )

    def _chosen(self, state: BBVIState) -> tuple[PyTree, tuple[int, int] | None]:
        """Return the parameters that count, and where the fit diverged and was last good."""
        watch = state.watch
        if watch is not None and watch.has_seen:
            if state.failures >= MAX_FAILURES:
                return watch.params, (int(state.num_updates), int(watch.good_at))
            if watch.left_at >= 0:
                return watch.params, (int(watch.left_at), int(watch.good_at))
        return (state.params if state.mean is None else state.mean), None

    def _records(self, target: AbstractTarget, params: PyTree) -> tuple:
        """Return what a state begins with, of which none is used before it is replaced."""
        family = self._family(target)
        watched = params if self._may_end_early else ()
        pace = start_pace(watched, self.steps, self._fall(target))
        noise = GradientNoise.start(split_tables(family, family.no_step(params))[0])
        own = self.optimizer is not None or self.update is not None
        watch = Watch.start(params, flat_view(target)[0].dtype) if own else None
        mean = params if self.average else None
        return pace, noise, watch, mean, start_anchor(self, target)

    def _fall(self, target: AbstractTarget) -> int:
        """Updates with falling steps; half of a short fit."""
        wanted = max(FALL, FALL_EPOCHS * self._batches(target).per_epoch)
        return min(wanted, max(1, self.steps // 2))

    @property
    def _may_end_early(self) -> bool:
        # Traces of several fits are compared, so these have one length.
        own = self.optimizer is not None or self.update is not None
        own |= self.batch_size is not None and isinstance(self.family, OfBatches)
        return not own and self.restarts == 1 and not has_rows(self.family)

    def _start(self, target: AbstractTarget, key: PRNGKey) -> PyTree:
        params = self._family(target).init(flat_init(target, key=key))
        return jax.tree.map(jnp.asarray, params)

    def _update(
        self,
        target: AbstractTarget,
        falls_at: Int[Array, ""],
        anchor: Anchor | None,
        run: Run,
        counter: Int[Array, ""],
        factor: Scalar,
        noise: PyTree,
        key: PRNGKey,
    ) -> tuple[Run, Scalar]:
        """Make one update, and return the ELBO; nan and none if these are not finite."""
        rows, epoch = self._batches(target).next(run.epoch, counter, key=key)
        batch = Batch.of(target, self.family, run.params, rows)._replace(anchor=anchor)
        family, own = batch.family, batch.params
        noise = batch.drawn(self._block, self.samples, noise)
        noise = self._behind(batch, noise, jr.fold_in(key, 1))
        seen, optimizer = run.gradient, None
        if self.update is not None:
            weights, moved = self.update.apply(family, own, batch.log_densities, noise, factor)
            flat, _ = ravel_pytree(moved)
        else:
            weights, gradient = self.estimator.estimate(
                family, own, batch.log_densities, noise, self.objective, batch.mask
            )
            flat, _ = ravel_pytree(gradient)
            seen, _ = ravel_pytree(split_tables(family, gradient)[0])
            falling = counter >= falls_at
            steps, optimizer = self._steps(gradient, batch, run.optimizer, falling, factor)
            moved = family.move(own, steps)
        elbo = self._value(weights)
        finite = jnp.isfinite(elbo) & (jnp.sum(0 * flat) == 0)  # one operation less
        either = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        new = Run(
            # Kept rows are written, too: where only these can change, tables are not copied.
            with_rows(family, run.params, either(moved, own), batch.rows),
            updated(batch.rows, run.optimizer, optimizer, either),
            epoch,
            either(seen, run.gradient),
        )
        return new, jnp.where(finite, elbo, jnp.nan)

    def _after(
        self,
        target: AbstractTarget,
        state: BBVIState,
        begin: PyTree,
        run: Run,
        failed: Bool[Array, " update"],
        index: Int[Array, ""],
        anchor: Anchor | None,
    ) -> BBVIState:
        """Return the state after a block; `begin` are parameters before it, if watched."""
        params, num_failed = run.params, jnp.sum(failed, dtype=jnp.int32)
        made = self._block - num_failed
        # Failures since the last update that was made.
        last = jnp.argmin(failed[::-1].astype(jnp.int32)).astype(jnp.int32)
        last = jnp.where(made > 0, last, state.failures + num_failed)
        gradient, pace, watch, mean = state.gradient, state.pace, state.watch, state.mean
        if self.update is None:
            new = gradient.after(run.gradient)
            gradient = jax.tree.map(lambda a, b: jnp.where(made > 0, a, b), new, gradient)
        if self._may_end_early:
            like = flat_view(target)[0]
            pace = advance(pace, self._family(target), params, index, self._block, like)
        if watch is not None:
            look = lambda w: w.after(self._look(target, begin), begin, index * self._block)
            due = index % max(LOOK // self._block, 1) == 0
            watch = jax.lax.cond(due, look, lambda w: w, watch)
        if mean is not None:
            mean = averaged(mean, params, index, self.steps // self._block // 2)
        return BBVIState(
            params,
            run.optimizer,
            run.epoch,
            state.num_updates + made,
            state.num_nonfinite + num_failed,
            last,
            pace,
            gradient,
            watch,
            mean,
            anchor,
        )

    def _value(self, weights: Any) -> Scalar:
        """Return the value of the objective that is recorded."""
        return evaluate(self.objective.shown, as_terms(weights))

    def _look(self, target: AbstractTarget, params: PyTree) -> Scalar:
        """Return the objective by the same noise, and the same rows, at all looks."""
        rows = None
        batches = self._batches(target)
        if self.batch_size is not None:
            assert batches.num_data is not None
            spread = np.linspace(0, batches.num_data - 1, self.batch_size)
            rows = jnp.asarray(spread.astype(np.int32))
        batch = Batch.of(target, self.family, params, rows)
        noise = batch.family.noise(batch.view[0], self.samples, key=jr.key(0))
        noise = self._behind(batch, noise, jr.key(1))
        return self._value(log_weights(batch, noise))

    def _behind(self, batch: Batch, noise: PyTree, key: PRNGKey) -> PyTree:
        """Return the noise behind positions that the objective was given; else that here."""
        if self.objective.draws is None:
            return noise
        given = some_draws(self.objective, self.samples, batch.view[0], key=key)
        family, params = batch.family, batch.params
        assert isinstance(family, AbstractGaussian)  # as `check_parts` has made sure
        return jax.vmap(lambda x: family.inverse(params, x))(given)

    def _steps(
        self, gradient: PyTree, batch: Batch, state: PyTree, falling: Array, factor: Scalar
    ) -> tuple[PyTree, PyTree]:
        """Return the steps of an update and the new state of the optimiser, of its rows."""
        descent = jax.tree.map(jnp.negative, gradient)
        if self.optimizer is not None:
            return optimizer_steps(self.optimizer.update, batch, state, descent)
        update = lambda d, s: self._optimizer.update(d, s, falling=falling)
        steps, new = optimizer_steps(update, batch, state, descent)
        return jax.tree.map(lambda x: factor.astype(x.dtype) * x, steps), new

    def _family(self, target: AbstractTarget) -> AbstractFamily:
        return bound(self.family, target, layout_of(target))

    def _batches(self, target: AbstractTarget) -> Minibatches:
        return minibatches(target, self.batch_size, self.batching)

    @property
    def _optimizer(self) -> Any:
        own = self.optimizer
        return default_optimizer(self.learning_rate) if own is None else own
