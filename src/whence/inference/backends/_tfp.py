"""NUTS of TensorFlow Probability (Lao and others, 2020, arXiv:2002.01184) in our loop."""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...core._types import PRNGKey
from .._settings import metric_name
from ._library import AbstractLibraryNUTS, LogDensity, Start, tree_depth
from ._options import route

# TensorFlow Probability's first window is 3/20 of warm-up and its slow windows are multiples
# of 1/20, from which variances are taken without shrinking. Below 20 steps its kernel fails; in
# 5 dimensions chains with 20 to 40 steps ended with step sizes of 1e-7 to 1e-20, none with 60.
_LEAST_WINDOWED = 100
# It lays out its checks for U-turns in a dense table of 4**depth numbers: 1 GB at 13.5.
_MAX_TREE_DEPTH = 12
# Arguments of its functions that the engine sets, or that do nothing on JAX.
_OWN = (
    *("target_log_prob_fn", "step_size", "momentum_distribution", "max_tree_depth"),
    *("parallel_iterations", "experimental_shard_axis_names", "name", "inner_kernel"),
    *("num_adaptation_steps", "target_accept_prob", "step_size_setter_fn"),
    *("step_size_getter_fn", "log_accept_prob_getter_fn", "reduce_fn"),
    *("experimental_reduce_chain_axis_names", "validate_args"),
)


class TFPNUTS(AbstractLibraryNUTS):
    """NUTS of TensorFlow Probability, with its adaptation in windows.

    Step size by dual averaging and a diagonal metric from four slow windows, as in its
    `windowed_adaptive_nuts`, but for each chain by itself: there all chains adapt together.
    Its estimate of the metric is not shrunk. With fewer than 100 steps of warm-up only the
    step size is adapted.

    Settings are those of `NUTS`, but for these.

    Args:
        max_tree_depth: Largest number of doublings, at most 12.
        metric: `"diagonal"` (also `"auto"`).
        step_size: Initial step size; None for TensorFlow Probability's, `dim**-0.25 / 2`.
        options: Further options of TensorFlow Probability, by name: `max_energy_diff` and
            `unrolled_leapfrog_steps`; `exploration_shrinkage`, `shrinkage_target`,
            `step_count_smoothing` and `decay_rate` of dual averaging.

    Raises:
        ImportError: If TensorFlow Probability is not installed.
    """

    library: ClassVar[str] = "tfp"

    def __check_init__(self):
        metric_name("auto", "diagonal")(self.metric)
        if self.max_tree_depth > _MAX_TREE_DEPTH:
            raise ValueError(
                f'`max_tree_depth` with backend="tfp" must be at most {_MAX_TREE_DEPTH}, or '
                f"its table of checks does not fit into memory; got {self.max_tree_depth}."
            )
        self._options()

    @property
    def forward_mode(self) -> bool:
        return False

    def start(self, log_density: LogDensity, start: Start, *, key: PRNGKey) -> PyTree:
        return _arrays(self._bootstrap(start))

    def transition(
        self, log_density: LogDensity, inner: PyTree, index: Array, *, key: PRNGKey
    ) -> tuple[PyTree, Array, dict[str, Array]]:
        tfp = library()
        find = tfp.internal.unnest.get_innermost
        # Kernel results hold distributions and, for the record, a key. The state of a chain
        # keeps their arrays alone; where these belong is found without a computation.
        structure, keys = self._layout(inner[0])
        arrays = iter(inner)
        leaves = [key if is_key else next(arrays) for is_key in keys]
        position, before = jax.tree.unflatten(structure, leaves)
        with _quietly():
            kernel = self._kernel(log_density, position)
            position, after = kernel.one_step(position, before, seed=key)
        n_steps = find(after, "leapfrogs_taken")
        # "Energy" is the log joint density of position and momentum, the normalising
        # constant of the momentum included: that constant is its log density at 0.
        momentum = find(before, "momentum_distribution")
        constant = momentum.log_prob([jnp.zeros_like(position)])
        unrolled = self._options()[0].get("unrolled_leapfrog_steps", 1)
        stats = {
            "lp": find(after, "target_log_prob"),
            "acceptance_rate": jnp.exp(find(after, "log_accept_ratio")),
            "step_size": find(after, "step_size"),
            "tree_depth": tree_depth(n_steps // unrolled),
            "n_steps": n_steps,
            "diverging": find(after, "has_divergence"),
            "energy": constant - find(after, "energy"),
            "reached_max_treedepth": find(after, "reach_max_depth"),
        }
        return _arrays((position, after)), position, stats

    def _bootstrap(self, start: Start) -> tuple[Array, Any]:
        """Return position and kernel results without another evaluation of the gradient.

        The kernel is shown a plane with the value and the gradient already known.
        """

        def plane(position: Array) -> Array:
            return start.log_density + jnp.dot(start.gradient, position - start.position)

        with _quietly():
            kernel = self._kernel(plane, start.position)
            return start.position, kernel.bootstrap_results(start.position)

    def _layout(self, position: Array) -> tuple[Any, list[bool]]:
        """Return the tree of position and kernel results, and which leaves are keys."""
        found = []

        def bootstrap(position: Array) -> tuple[Array, ...]:
            start = Start(position, jnp.sum(position), position)
            leaves, structure = jax.tree.flatten(self._bootstrap(start))
            found.append((structure, [_is_key(leaf) for leaf in leaves]))
            return tuple(leaves)

        jax.eval_shape(bootstrap, position)
        return found[0]

    def _kernel(self, log_density: LogDensity, position: Array) -> Any:
        mcmc = library().experimental.mcmc
        stats = library().experimental.stats
        sampling, averaging = self._options()
        step_size = self.step_size or 0.5 * position.size**-0.25
        proposal = {
            "target_log_prob_fn": log_density,
            "step_size": jnp.asarray(step_size, position.dtype),
            "max_tree_depth": self.max_tree_depth,
            **sampling,
        }
        averaging = {
            "num_adaptation_steps": self.warmup,
            "target_accept_prob": self.target_accept,
            **averaging,
        }
        windowed = mcmc.windowed_sampling
        if self.warmup < _LEAST_WINDOWED:
            return windowed.make_fast_adapt_kernel(
                kind="nuts", proposal_kernel_kwargs=proposal, dual_averaging_kwargs=averaging
            )
        return windowed.make_windowed_adapt_kernel(
            kind="nuts",
            proposal_kernel_kwargs=proposal,
            dual_averaging_kwargs=averaging,
            initial_running_variance=[
                stats.RunningVariance.from_stats(
                    jnp.zeros((), position.dtype),
                    jnp.zeros_like(position),
                    jnp.ones_like(position),
                )
            ],
            chain_axis_names=None,
            shard_axis_names=None,
        )

    def _options(self) -> tuple[dict[str, Any], dict[str, Any]]:
        sampling, averaging = route(
            self.options,
            self.library,
            _OWN,
            library().experimental.mcmc.PreconditionedNoUTurnSampler.__init__,
            library().mcmc.DualAveragingStepSizeAdaptation.__init__,
        )
        return sampling, averaging


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence what JAX says to TensorFlow Probability about names that it has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@functools.cache
def library() -> Any:
    """Return TensorFlow Probability on JAX, or say how to install it."""
    try:
        with _quietly():
            import tensorflow_probability.substrates.jax as tfp
    except (ImportError, AttributeError) as error:  # an old release fails with the latter
        raise ImportError(
            '`NUTS(backend="tfp")` needs TensorFlow Probability on JAX, which could not be '
            f"imported ({error}). Install it with `pip install whence[tfp]`."
        ) from error
    return tfp


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)


def _arrays(tree: PyTree) -> tuple[Array, ...]:
    return tuple(leaf for leaf in jax.tree.leaves(tree) if not _is_key(leaf))
