"""The No-U-Turn sampler."""

import dataclasses
import functools

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...core._convert import flag, fraction, one_of, positive, whole
from ...core._engine import AbstractEngine, Info, Sample, Trace
from ...core._target import AbstractTarget
from ...core._types import PRNGKey
from ...core._wrapped import AbstractWrappedEngine
from .. import backends
from .._settings import metric_name
from ..backends._options import freeze
from ._estimate import AbstractEstimator
from ._integrator import PhasePoint
from ._sampler import METRICS, AbstractSampler
from ._trajectory import Flag
from ._tree import Tree, start_tree

# While the metric knows nothing a long trajectory is not worth its gradients.
_EARLY_SHARE, _EARLY_DEPTH = 0.15, 6


class TreeSampler(AbstractSampler):
    """whence's own NUTS; its settings are those of `NUTS`, which has checked them."""

    chains: int
    warmup: int
    draws: int
    target_accept: float
    max_tree_depth: int
    metric: str | AbstractEstimator
    step_size: float | None
    keep_warmup: bool

    @property
    def name(self) -> str:
        return "NUTS"

    def start_trajectory(
        self, point: PhasePoint, step_size: Array, one_step: Flag, index: Array, *, key: PRNGKey
    ) -> Tree:
        """Start a tree, a smaller one at the very start of warm-up."""
        early = int(_EARLY_SHARE * self.warmup)
        depth = self.max_tree_depth
        limit = jnp.where(index < early, min(_EARLY_DEPTH, depth), depth)
        limit = jnp.where(one_step, 1, limit).astype(jnp.int32)
        return start_tree(point, step_size, depth, limit, key=key)


ENGINES: dict[str, type[AbstractEngine]] = {
    "whence": TreeSampler,
    "blackjax": backends.BlackjaxNUTS,
    "numpyro": backends.NumpyroNUTS,
    "tfp": backends.TFPNUTS,
}


class NUTS(AbstractWrappedEngine):
    """No-U-Turn sampler: the default engine for continuous posteriors.

    Multinomial NUTS with the generalised U-turn criterion and its checks across subtrees.
    Starts far from the typical set first go uphill, not as far as the mode. Unless it is told
    where to begin, a chain with 200 steps of warm-up or more follows two starts, each for a
    tenth of them, and goes on from the first, or from the second if that has led far higher.
    During warm-up step size and metric adapt, the metric by windows in which the chain has
    arrived; then they are frozen.

    Attributes:
        chains: Independent chains.
        warmup: Steps of adaptation; with 0 the step size is `step_size`, or what a search
            at the start finds, and the metric is the identity.
        draws: Draws kept from each chain.
        target_accept: Mean acceptance rate that the step size aims at. Chains that diverge in
            warm-up aim higher, at up to five times fewer rejections; the posterior's
            `record.target_acceptance` has the aim of each. Nearer to 1: slower,
            fewer divergences.
        max_tree_depth: Doublings at most: up to `2^max_tree_depth - 1` gradients a draw.
        metric: `"diagonal"`: variances of draws. `"fisher"`: variances of draws and of
            gradients. `"dense"`: covariance of draws. `"low_rank"`: `"fisher"`, corrected along
            at most 16 directions. `"auto"`: up to 64 dimensions dense or diagonal, from draws
            and gradients, whichever predicts better; above, `"fisher"` for windows of fewer
            than 100 draws and `"diagonal"` for longer ones. Or an estimator of
            `whence.inference.hmc`. Other backends know `"diagonal"`, `"dense"` and `"auto"`.
        step_size: First step size; None to search for one.
        keep_warmup: Whether to keep the draws of warm-up.
        backend: `"whence"`, or the library whose NUTS is to be run in its place:
            `"blackjax"`, `"numpyro"`, `"tfp"`.
        options: Options of the other library, as a dict or as pairs.

    References:
        Hoffman and Gelman (2014), The No-U-Turn sampler, JMLR 15(47).
        Betancourt (2017), arXiv:1701.02434.
        Seyboldt, Carlson and Carpenter (2026), metrics from gradients, arXiv:2603.18845
        [backend: whence] [metric: auto, fisher, low_rank].
        Cabezas, Corenflos, Lao and Louf (2024), arXiv:2402.10797 [backend: blackjax].
        Phan, Pradhan and Jankowiak (2019), arXiv:1912.11554 [backend: numpyro].
        Lao et al. (2020), arXiv:2002.01184 [backend: tfp].
    """

    chains: int = eqx.field(default=4, converter=whole("chains", least=1))
    warmup: int = eqx.field(default=1000, converter=whole("warmup", least=0))
    draws: int = eqx.field(default=1000, converter=whole("draws", least=1))
    target_accept: float = eqx.field(default=0.8, converter=fraction("target_accept"))
    max_tree_depth: int = eqx.field(
        default=10, converter=whole("max_tree_depth", least=1, most=20)
    )
    metric: str | AbstractEstimator = eqx.field(
        default="auto", converter=metric_name(*METRICS, kind=AbstractEstimator)
    )
    step_size: float | None = eqx.field(
        default=None, converter=positive("step_size", optional=True)
    )
    keep_warmup: bool = eqx.field(default=False, converter=flag("keep_warmup"))
    backend: str = eqx.field(default="whence", converter=one_of("backend", ENGINES))
    options: tuple = eqx.field(default=(), converter=freeze)

    def __check_init__(self):
        if self.backend == "whence" and self.options:
            raise ValueError(
                '`options` are for other backends; with backend="whence" there are none; '
                f"got {dict(self.options)}."
            )
        _ = self.engine  # checks the rest

    @property
    def engine(self) -> AbstractEngine:
        return _build(self)

    def step(
        self, target: AbstractTarget, state: PyTree, index: Array, *, key: PRNGKey
    ) -> tuple[PyTree, Info]:
        return self.engine.step(target, state, index, key=key)

    def posterior(
        self, target: AbstractTarget, state: PyTree, trace: Trace, *, key: PRNGKey
    ) -> Sample:
        return self.engine.posterior(target, state, trace, key=key)


@functools.lru_cache
def _build(nuts: NUTS) -> AbstractEngine:
    kind = ENGINES[nuts.backend]
    settings = {f.name: getattr(nuts, f.name) for f in dataclasses.fields(kind)}
    try:
        return kind(**settings)
    except ValueError as error:
        raise ValueError(f'With backend="{nuts.backend}": {error}') from error
