"""What the adapters share: one engine whose transition belongs to another library.

Each library is given a log density of one flat vector, in JAX's default float type: their
adaptation makes arrays of that type, whatever the type of the position. The target itself
is always evaluated in the type of its own positions.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PyTree

from ...core._convert import flag, fraction, positive, whole
from ...core._dtype import relaxed
from ...core._engine import AbstractEngine, Info, Sample, Schedule, Trace
from ...core._flat import flat_init, flat_view
from ...core._require import check_positions
from ...core._results import RESULTS
from ...core._start import find_start
from ...core._target import AbstractTarget
from ...core._types import PRNGKey, Scalar
from ...diagnostics._records import AdaptedChains
from .._chain_sample import chain_sample, chain_schedule
from .._settings import metric_name
from ._options import freeze

LogDensity = Callable[[Array], Array]


class Start(NamedTuple):
    """A point to start from, with what a library would otherwise evaluate again."""

    position: Float[Array, " dim"]
    log_density: Scalar
    gradient: Float[Array, " dim"]


class State(eqx.Module):
    """State of one chain: the library's own, and whether a finite start was found."""

    inner: PyTree
    started: Bool[Array, ""]


class AbstractLibraryNUTS(AbstractEngine):
    """NUTS of another library, one of its transitions per step of our loop.

    A final class brings the methods that speak to its library.

    Attributes:
        chains: Independent chains.
        warmup: Steps of adaptation for each chain.
        draws: Steps after it.
        target_accept: Acceptance statistic that dual averaging aims at.
        max_tree_depth: Largest number of doublings.
        metric: `"diagonal"` (also `"auto"`) or, where the library has it, `"dense"`.
        step_size: Initial step size; None for the library's.
        keep_warmup: Whether the result has the draws of warm-up too.
        options: Further options of the library, by name.
    """

    library: eqx.AbstractClassVar[str]

    chains: int = eqx.field(default=4, converter=whole("chains", least=1))
    warmup: int = eqx.field(default=1000, converter=whole("warmup", least=0))
    draws: int = eqx.field(default=1000, converter=whole("draws", least=1))
    target_accept: float = eqx.field(default=0.8, converter=fraction("target_accept"))
    max_tree_depth: int = eqx.field(default=10, converter=whole("max_tree_depth", least=1))
    metric: str = eqx.field(default="auto", converter=metric_name("auto", "diagonal", "dense"))
    step_size: float | None = eqx.field(
        default=None, converter=positive("step_size", optional=True)
    )
    keep_warmup: bool = eqx.field(default=False, converter=flag("keep_warmup"))
    options: tuple = eqx.field(default=(), converter=freeze)

    @abc.abstractmethod
    def start(self, log_density: LogDensity, start: Start, *, key: PRNGKey) -> PyTree:
        """Return the library's state before the first transition."""

    @abc.abstractmethod
    def transition(
        self, log_density: LogDensity, inner: PyTree, index: Array, *, key: PRNGKey
    ) -> tuple[PyTree, Array, dict[str, Array]]:
        """Make one transition, adapting during warm-up.

        Returns:
            The library's new state, the new position `(dim,)`, and statistics by the names
            of ArviZ's `sample_stats`.
        """

    @property
    @abc.abstractmethod
    def forward_mode(self) -> bool:
        """Whether gradients are taken in forward mode."""

    @property
    def name(self) -> str:
        return f"NUTS ({self.library})"

    @property
    def schedule(self) -> Schedule:
        searches = self.step_size is None
        return chain_schedule(self.chains, self.warmup, self.draws, homogeneous=not searches)

    def validate(self, target: AbstractTarget) -> None:
        check_positions(target, "NUTS")

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> PyTree:
        key_start, key_library = jr.split(key)
        log_density = _flat_log_density(target)
        start, found = _find_start(target, log_density, self.forward_mode, key=key_start)
        with relaxed():
            inner = self.start(log_density, start, key=key_library)
        return State(strong(inner), found)

    def step(
        self, target: AbstractTarget, state: PyTree, index: Array, *, key: PRNGKey
    ) -> tuple[PyTree, Info]:
        log_density = _flat_log_density(target)
        with relaxed():
            inner, position, stats = self.transition(log_density, state.inner, index, key=key)
        dtype = flat_view(target)[0].dtype
        info = Info(position.astype(dtype), {k: _plain(v, dtype) for k, v in stats.items()})
        return State(strong(inner), state.started), info

    def done(self, state: PyTree) -> Bool[Array, ""]:
        return ~state.started  # a chain without a start has nothing to do

    def result(self, state: PyTree) -> RESULTS:
        return RESULTS.where(state.started, RESULTS.successful, RESULTS.nonfinite_start)

    def posterior(
        self, target: AbstractTarget, state: PyTree, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        record, keep = AdaptedChains(self.target_accept), self.keep_warmup
        return chain_sample(target, trace, "mcmc", keep_warmup=keep, record=record)


def strong(tree: PyTree) -> PyTree:
    """Return a pytree as arrays without weak types, which would cost a second trace."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def tree_depth(num_steps: Array) -> Array:
    """Return the number of doublings of a tree from its number of leapfrog steps.

    Doubling `k` (from 1) takes up to `2**(k - 1)` steps, at least one: after `d` doublings
    there are `2**(d - 1)` to `2**d - 1` steps. So `d` is the length of their number in bits.
    """
    return 32 - jax.lax.clz(num_steps.astype(jnp.int32))


def _plain(value: Array, dtype: Any) -> Array:
    """Return a statistic in the type of the position, int32 or bool."""
    value = jnp.asarray(value)
    if jnp.issubdtype(value.dtype, jnp.floating):
        return value.astype(dtype)
    if jnp.issubdtype(value.dtype, jnp.integer):
        return value.astype(jnp.int32)
    return value


def _flat_log_density(target: AbstractTarget) -> LogDensity:
    """Return the log density of a flat vector, in that vector's type."""
    zeros, unravel = flat_view(target)

    def log_density(flat: Array) -> Array:
        return target.log_density(unravel(flat.astype(zeros.dtype))).astype(flat.dtype)

    return log_density


def _find_start(
    target: AbstractTarget, log_density: LogDensity, forward_mode: bool, *, key: PRNGKey
) -> tuple[Start, Bool[Array, ""]]:
    """Try fresh initial points until the log density and its gradient are finite."""

    def attempt(key: PRNGKey) -> tuple[Start, Bool[Array, ""]]:
        flat = flat_init(target, key=key).astype(jnp.result_type(float))
        if forward_mode:
            gradient, value = jax.jacfwd(with_value, has_aux=True)(flat)
        else:
            value, gradient = jax.value_and_grad(log_density)(flat)
        is_finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        return strong(Start(flat, value, gradient)), is_finite

    def with_value(flat: Array) -> tuple[Array, Array]:
        value = log_density(flat)
        return value, value

    zeros = flat_view(target)[0].astype(jnp.result_type(float))
    return find_start(attempt, Start(zeros, jnp.zeros((), zeros.dtype), zeros), key=key)
