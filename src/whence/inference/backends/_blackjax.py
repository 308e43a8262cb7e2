"""NUTS of BlackJAX (Cabezas, Corenflos, Lao, Louf and others, 2024) in our loop."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ...core._dtype import relaxed
from ...core._types import PRNGKey
from ._library import AbstractLibraryNUTS, LogDensity, Start
from ._options import initial_metric, route

_INTEGRATORS = ("velocity_verlet", "mclachlan", "yoshida", "omelyan")
# Arguments of BlackJAX's functions that the engine sets; `buffer_size` is for its low-rank
# metric only.
_OWN = ("num_steps", "target", "buffer_size")


class _State(NamedTuple):
    sampler: Any  # blackjax.mcmc.hmc.HMCState
    averaging: Any  # DualAveragingAdaptationState
    metric: Any  # MassMatrixAdaptationState
    step_size: Array


class BlackjaxNUTS(AbstractLibraryNUTS):
    """NUTS and window adaptation of BlackJAX.

    The parts are BlackJAX's (kernel, dual averaging, metric estimate, schedule); its
    `window_adaptation` runs them in a `scan` of its own, here they run step by step.

    Settings are those of `NUTS`, but for these.

    Args:
        metric: `"diagonal"` (also `"auto"`) or `"dense"`.
        step_size: Initial step size; None for BlackJAX's, 1.
        options: Further options of BlackJAX, by name: `integrator` (a function, or the name
            of one in `blackjax.mcmc.integrators`), `divergence_threshold`; `t0`, `gamma` and
            `kappa` of dual averaging; `initial_inverse_mass_matrix` and
            `imm_shrinkage_to_previous`; `initial_buffer_size`, `first_window_size` and
            `final_buffer_size` of the schedule.
    """

    library: ClassVar[str] = "blackjax"

    def __check_init__(self):
        self._parts()

    @property
    def forward_mode(self) -> bool:
        return False

    def start(self, log_density: LogDensity, start: Start, *, key: PRNGKey) -> PyTree:
        from blackjax.mcmc.hmc import HMCState

        _, (average_init, _, _), metric, _ = self._parts(start.position.size)
        step_size = jnp.asarray(self.step_size or 1.0, start.position.dtype)
        return _State(
            HMCState(*start),  # pyright: ignore[reportArgumentType] (annotated as floats)
            average_init(step_size),
            metric.init(start.position.size),
            step_size,
        )

    def transition(
        self, log_density: LogDensity, inner: PyTree, index: Array, *, key: PRNGKey
    ) -> tuple[PyTree, Array, dict[str, Array]]:
        kernel, *_ = self._parts()
        sampler, info = kernel(
            key,
            inner.sampler,
            log_density,
            inner.step_size,
            inner.metric.inverse_mass_matrix,
            self.max_tree_depth,
        )
        depth = info.num_trajectory_expansions
        stats = {
            "lp": sampler.logdensity,
            # Summed on the log scale, which can round to just above 1.
            "acceptance_rate": jnp.minimum(info.acceptance_rate, 1.0),
            "step_size": inner.step_size,
            "tree_depth": depth,
            "n_steps": info.num_integration_steps,
            "diverging": info.is_divergent,
            "energy": info.energy,
            "reached_max_treedepth": (depth >= self.max_tree_depth)
            & ~info.is_turning
            & ~info.is_divergent,
        }
        new = inner._replace(sampler=sampler)
        if self.warmup > 0:
            new = jax.lax.cond(
                index < self.warmup,
                lambda: self._adapt(new, info.acceptance_rate, index),
                lambda: new,
            )
        return new, sampler.position, stats

    def _adapt(self, state: _State, acceptance_rate: Array, index: Array) -> _State:
        """Make one step of BlackJAX's window adaptation."""
        _, (restart, update, final), metric, schedule = self._parts()
        slow, window_end = jnp.asarray(schedule)[jnp.minimum(index, self.warmup - 1)]
        averaging = update(state.averaging, acceptance_rate)
        average = final(averaging)
        estimate = jax.lax.cond(
            slow == 1,
            lambda: metric.update(
                state.metric, state.sampler.position, state.sampler.logdensity_grad
            ),
            lambda: state.metric,
        )
        averaging, estimate = jax.lax.cond(
            window_end == 1,
            lambda: (_like(restart(average), averaging), metric.final(estimate)),
            lambda: (averaging, estimate),
        )
        # Taken before a restart: the average of a scheme that has just restarted is 1,
        # which is what BlackJAX would return for a schedule without a final buffer.
        step_size = jnp.where(
            index == self.warmup - 1, average, jnp.exp(averaging.log_step_size)
        )
        return _State(state.sampler, averaging, estimate, step_size)

    def _parts(self, dim: int | None = None) -> tuple:
        """Return kernel, dual averaging, metric estimate and schedule, options applied."""
        from blackjax.adaptation.metric_recipes import lookup_recipe
        from blackjax.adaptation.staged_adaptation import build_schedule
        from blackjax.adaptation.step_size import dual_averaging_adaptation
        from blackjax.mcmc import integrators, nuts

        recipe = lookup_recipe("welford_dense" if self.metric == "dense" else "welford_diag")
        kernel, average, core, schedule = route(
            self.options,
            self.library,
            _OWN,
            nuts.build_kernel,
            dual_averaging_adaptation,
            recipe.build_core,
            build_schedule,
        )
        if isinstance(kernel.get("integrator"), str):
            if kernel["integrator"] not in _INTEGRATORS:
                raise ValueError(
                    f"`options['integrator']` must be one of {', '.join(_INTEGRATORS)}, or a "
                    f"function; got {kernel['integrator']}."
                )
            kernel["integrator"] = getattr(integrators, kernel["integrator"])
        initial = core.pop("initial_inverse_mass_matrix", None)
        if initial is not None and dim is not None:
            core["initial_inverse_mass_matrix"] = initial_metric(
                initial, self.metric == "dense", dim
            )
        with jax.ensure_compile_time_eval(), relaxed():
            windows = np.asarray(build_schedule(self.warmup, **schedule))
        return (
            nuts.build_kernel(**kernel),
            dual_averaging_adaptation(self.target_accept, **average),
            recipe.build_core(**core),
            windows,
        )


def _like(new: PyTree, old: PyTree) -> PyTree:
    """Return `new` with the types of `old`: BlackJAX restarts with Python numbers."""
    return jax.tree.map(lambda n, o: jnp.asarray(n, o.dtype), new, old)
