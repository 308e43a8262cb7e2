"""Contracts that all packages share: target, engine, data, results. No algorithm, no model."""

from ._advance import advance as advance
from ._cache import clear_programs as clear_programs, compiled as compiled
from ._conditioned import Conditioned as Conditioned
from ._convert import (
    flag as flag,
    fraction as fraction,
    number as number,
    one_of as one_of,
    part as part,
    positive as positive,
    whole as whole,
)
from ._data import (
    Minibatches as Minibatches,
    log_density_estimate as log_density_estimate,
    minibatches as minibatches,
)
from ._dtype import enable_x64 as enable_x64
from ._engine import (
    AbstractEngine as AbstractEngine,
    AbstractOnlineEngine as AbstractOnlineEngine,
    AbstractPausingEngine as AbstractPausingEngine,
    AbstractPausingProcedure as AbstractPausingProcedure,
    AbstractProcedure as AbstractProcedure,
    Explains as Explains,
    Info as Info,
    Sample as Sample,
    Schedule as Schedule,
    Trace as Trace,
    never as never,
)
from ._feynman_kac import (
    AbstractFeynmanKac as AbstractFeynmanKac,
    AbstractSequenceTarget as AbstractSequenceTarget,
    ExactSequence as ExactSequence,
    GuidedSequence as GuidedSequence,
)
from ._flat import (
    flat_init as flat_init,
    flat_view as flat_view,
    position_shapes as position_shapes,
)
from ._growing import GrowingTarget as GrowingTarget, rows_so_far as rows_so_far
from ._key import as_key as as_key
from ._particle_target import AbstractParticleTarget as AbstractParticleTarget
from ._results import (
    RESULTS as RESULTS,
    InferenceError as InferenceError,
    InferenceWarning as InferenceWarning,
)
from ._rows import check_rows as check_rows
from ._start import MAX_STARTS as MAX_STARTS, find_start as find_start
from ._stream import Stream as Stream, Streamed as Streamed
from ._target import (
    AbstractDataTarget as AbstractDataTarget,
    AbstractDescribedTarget as AbstractDescribedTarget,
    AbstractTarget as AbstractTarget,
    DependentData as DependentData,
    HasJacobian as HasJacobian,
    HasLocals as HasLocals,
    LabelsDraws as LabelsDraws,
    LatentShape as LatentShape,
    NamesArrays as NamesArrays,
    NamesInputs as NamesInputs,
    NamesLatents as NamesLatents,
    ReplacesData as ReplacesData,
    SamplesPrior as SamplesPrior,
    SplitsPrior as SplitsPrior,
    TakesInputs as TakesInputs,
    Unconstrains as Unconstrains,
)
from ._types import (
    AnyArray as AnyArray,
    Draw as Draw,
    Position as Position,
    PRNGKey as PRNGKey,
    Scalar as Scalar,
)
from ._wrapped import AbstractWrappedEngine as AbstractWrappedEngine
