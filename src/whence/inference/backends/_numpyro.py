"""NUTS of NumPyro (Phan, Pradhan and Jankowiak, 2019, arXiv:1912.11554) in our loop."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, PyTree

from ...core._types import PRNGKey
from ._library import AbstractLibraryNUTS, LogDensity, Start, tree_depth
from ._options import initial_metric, route

# Arguments of NumPyro's NUTS that the engine sets, that belong to its models, or that its
# NUTS ignores (`trajectory_length`).
_OWN = (
    *("model", "potential_fn", "kinetic_fn", "step_size", "dense_mass", "target_accept_prob"),
    *("trajectory_length", "max_tree_depth", "init_strategy"),
)


class NumpyroNUTS(AbstractLibraryNUTS):
    """NUTS of NumPyro, with its own adaptation in windows.

    Settings are those of `NUTS`, but for these.

    Args:
        metric: `"diagonal"` (also `"auto"`) or `"dense"`.
        step_size: Initial step size; None for NumPyro's, 1.
        options: Further options of `numpyro.infer.NUTS`, by name: `inverse_mass_matrix` (the
            initial one), `adapt_step_size`, `adapt_mass_matrix`, `regularize_mass_matrix`,
            `find_heuristic_step_size`, `forward_mode_differentiation`.
    """

    library: ClassVar[str] = "numpyro"

    def __check_init__(self):
        self._options()

    @property
    def forward_mode(self) -> bool:
        return bool(self._options().get("forward_mode_differentiation", False))

    def start(self, log_density: LogDensity, start: Start, *, key: PRNGKey) -> PyTree:
        kernel = self._kernel(log_density, start.position.size)
        return _without_keys(self._kernel_state(kernel, start, key))

    def transition(
        self, log_density: LogDensity, inner: PyTree, index: Array, *, key: PRNGKey
    ) -> tuple[PyTree, Array, dict[str, Array]]:
        kernel = self._kernel(log_density, inner.z.size)
        # NumPyro makes its transition function while it makes an initial state. That state
        # is not needed here, so it is made abstractly and leaves nothing in the program.
        start = Start(inner.z, inner.potential_energy, inner.z_grad)
        jax.eval_shape(lambda: self._kernel_state(kernel, start, key))
        key_transition, key_adaptation = jr.split(key)
        before = inner._replace(
            # NumPyro's counter decides between adapting and not. As the loop's index it is
            # common to all chains, and the decision stays a branch under `vmap`.
            i=index.astype(jnp.result_type(int)),
            rng_key=key_transition,
            adapt_state=inner.adapt_state._replace(rng_key=key_adaptation),
        )
        after = kernel.sample(before, (), {})
        depth = tree_depth(after.num_steps)
        stats = {
            "lp": -after.potential_energy,
            "acceptance_rate": after.accept_prob,
            "step_size": before.adapt_state.step_size,
            "tree_depth": depth,
            "n_steps": after.num_steps,
            "diverging": after.diverging,
            "energy": after.energy,
            # NumPyro does not tell whether a full tree also turned at its last step; such
            # a tree counts as stopped by the limit, as it does in Stan.
            "reached_max_treedepth": (depth >= self.max_tree_depth) & ~after.diverging,
        }
        return _without_keys(after), after.z, stats

    def _kernel_state(self, kernel: Any, start: Start, key: PRNGKey) -> Any:
        from numpyro.infer.util import ParamInfo

        # With energy and gradient given, NumPyro does not evaluate them once more.
        known = ParamInfo(start.position, -start.log_density, -start.gradient)
        return kernel.init(key, self.warmup, init_params=known)

    def _kernel(self, log_density: LogDensity, dim: int) -> Any:
        from numpyro.infer import NUTS

        options = self._options()
        dense = self.metric == "dense"
        if options.get("inverse_mass_matrix") is not None:
            options["inverse_mass_matrix"] = initial_metric(
                options["inverse_mass_matrix"], dense, dim
            )
        return NUTS(
            potential_fn=lambda position: -log_density(position),
            step_size=1.0 if self.step_size is None else self.step_size,
            dense_mass=dense,
            target_accept_prob=self.target_accept,
            max_tree_depth=self.max_tree_depth,
            **options,
        )

    def _options(self) -> dict[str, Any]:
        from numpyro.infer import NUTS

        return route(self.options, self.library, _OWN, NUTS.__init__)[0]


def _without_keys(state: Any) -> Any:
    """Return NumPyro's state without its keys: every step brings its own.

    The draws then depend on a step's number alone, not on how the steps were grouped.
    """
    return state._replace(rng_key=None, adapt_state=state.adapt_state._replace(rng_key=None))
