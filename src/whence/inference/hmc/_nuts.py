"""The No-U-Turn sampler."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from ...core._engine import AbstractEngine, AbstractPausingEngine, Info, Sample, Schedule, Trace
from ...core._results import RESULTS
from ...core._target import AbstractTarget
from ...core._types import PRNGKey
from ._integrator import PhasePoint
from ._sampler import AbstractPolicy, Sampler
from ._tree import Tree, plant

BACKENDS = ("whence", "blackjax", "numpyro", "tfp")
# While the metric knows nothing a long trajectory is not worth its gradients.
_EARLY_SHARE, _EARLY_DEPTH = 0.15, 6


def _freeze(options: Mapping[str, Any] | tuple) -> tuple:
    pairs = options.items() if isinstance(options, Mapping) else options
    return tuple(sorted((name, value) for name, value in pairs))


class TreePolicy(AbstractPolicy):
    """Starts NUTS trees, smaller ones at the very start of warm-up."""

    max_depth: int
    warmup: int

    def plant(
        self,
        point: PhasePoint,
        step_size: Array,
        is_single: Bool[Array, ""],
        index: Array,
        *,
        key: PRNGKey,
    ) -> Tree:
        early = int(_EARLY_SHARE * self.warmup)
        limit = jnp.where(index < early, min(_EARLY_DEPTH, self.max_depth), self.max_depth)
        limit = jnp.where(is_single, 1, limit).astype(jnp.int32)
        return plant(point, step_size, self.max_depth, limit, key=key)


class NUTS(AbstractPausingEngine):
    """No-U-Turn sampler: the default engine for continuous posteriors.

    Multinomial NUTS with the generalised U-turn criterion and its checks across subtrees.
    Starts far from the typical set first go uphill, not as far as the mode. During warm-up
    step size and metric adapt, the metric by windows in which the chain has arrived; then
    they are frozen.

    Attributes:
        chains: Independent chains.
        warmup: Steps of adaptation; with 0 the step size is `step_size`, or what a search
            at the start finds, and the metric is the identity.
        draws: Draws kept from each chain.
        target_accept: Mean acceptance rate that the step size aims at. Chains that diverge in
            warm-up aim higher, at up to five times fewer rejections; the posterior's
            `sample.target_acceptance` is the highest of their aims. Nearer to 1: slower,
            fewer divergences.
        max_tree_depth: Doublings at most: up to `2^max_tree_depth - 1` gradients a draw.
        metric: `"diag"`: variances of draws. `"fisher"`: variances of draws and of
            gradients. `"dense"`: covariance of draws. `"low_rank"`: `"fisher"`, corrected along
            at most 16 directions. `"auto"`: up to 64 dimensions dense or diagonal, from draws
            and gradients, whichever predicts better; above, `"fisher"` for windows of fewer
            than 100 draws and `"diag"` for longer ones. Other backends know `"diag"`,
            `"dense"` and `"auto"`.
        step_size: First step size; None to search for one.
        keep_warmup: Whether to keep the draws of warm-up.
        backend: `"whence"`, or the library whose NUTS is to be run in its place:
            `"blackjax"`, `"numpyro"`, `"tfp"`.
        options: Options of the other library, as a dict or as pairs.

    References:
        Hoffman and Gelman (2014), http://jmlr.org/papers/v15/hoffman14a.html.
        Betancourt (2017), arXiv:1701.02434.
        Seyboldt, Carlson and Carpenter (2026), arXiv:2603.18845: metrics from gradients.
    """

    chains: int = 4
    warmup: int = 1000
    draws: int = 1000
    target_accept: float = 0.8
    max_tree_depth: int = 10
    metric: str = "auto"
    step_size: float | None = None
    keep_warmup: bool = False
    backend: str = "whence"
    options: tuple = eqx.field(default=(), converter=_freeze)

    def __check_init__(self):
        if self.backend not in BACKENDS:
            choices = ", ".join(f'"{name}"' for name in BACKENDS)
            raise ValueError(f'`backend` must be one of {choices}; got "{self.backend}".')
        if not 1 <= self.max_tree_depth <= 20:
            raise ValueError(
                f"`max_tree_depth` must lie between 1 and 20; got {self.max_tree_depth}."
            )
        if self.backend == "whence" and self.options:
            raise ValueError(
                '`options` are for other backends; with backend="whence" there are none; '
                f"got {dict(self.options)}."
            )
        self._engine()  # checks the rest

    def _engine(self) -> AbstractEngine:
        common = {
            "chains": self.chains,
            "warmup": self.warmup,
            "draws": self.draws,
            "target_accept": self.target_accept,
            "metric": self.metric,
            "step_size": self.step_size,
            "keep_warmup": self.keep_warmup,
        }
        if self.backend == "whence":
            policy = TreePolicy(self.max_tree_depth, self.warmup)
            return Sampler(label="NUTS", policy=policy, **common)
        from .. import backends

        engines = {
            "blackjax": backends.BlackjaxNUTS,
            "numpyro": backends.NumpyroNUTS,
            "tfp": backends.TFPNUTS,
        }
        return engines[self.backend](
            max_tree_depth=self.max_tree_depth, options=self.options, **common
        )

    @property
    def name(self) -> str:
        return self._engine().name

    @property
    def schedule(self) -> Schedule:
        return self._engine().schedule

    def validate(self, target: AbstractTarget) -> None:
        self._engine().validate(target)

    def init(self, target: AbstractTarget, *, key: PRNGKey) -> PyTree:
        return self._engine().init(target, key=key)

    def step(
        self, target: AbstractTarget, state: PyTree, index: Array, *, key: PRNGKey
    ) -> tuple[PyTree, Info]:
        return self._engine().step(target, state, index, key=key)

    def pause(self, state: PyTree, index: int) -> PyTree:
        engine = self._engine()
        assert isinstance(engine, AbstractPausingEngine)
        return engine.pause(state, index)

    def done(self, state: PyTree) -> Bool[Array, ""]:
        return self._engine().done(state)

    def result(self, state: PyTree) -> RESULTS:
        return self._engine().result(state)

    def posterior(
        self, target: AbstractTarget, state: PyTree, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        return self._engine().posterior(target, state, trace, key=key)
