"""The five abstractions: model, target, engine, loop, posterior. No algorithm, no model."""

from ._cache import clear_programs as clear_programs, compiled as compiled
from ._check import CheckReport as CheckReport, check as check
from ._condition import ModelTarget as ModelTarget, condition as condition
from ._data import Minibatches as Minibatches
from ._distributed import distributed as distributed
from ._dtype import enable_x64 as enable_x64
from ._engine import (
    AbstractEngine as AbstractEngine,
    AbstractOnlineEngine as AbstractOnlineEngine,
    AbstractPausingEngine as AbstractPausingEngine,
    Info as Info,
    Sample as Sample,
    Schedule as Schedule,
    Trace as Trace,
    never as never,
)
from ._growing import GrowingTarget as GrowingTarget, rows_so_far as rows_so_far
from ._infer import (
    InferenceError as InferenceError,
    InferenceWarning as InferenceWarning,
    infer as infer,
)
from ._latent import Coords as Coords, derived as derived, latent as latent
from ._load import load as load
from ._mesh import mesh as mesh
from ._model import Model as Model
from ._posterior import Posterior as Posterior
from ._replay import Replay as Replay, replay as replay
from ._results import RESULTS as RESULTS
from ._resume import extend as extend, resume as resume
from ._target import (
    AbstractDataTarget as AbstractDataTarget,
    AbstractDescribedTarget as AbstractDescribedTarget,
    AbstractTarget as AbstractTarget,
)
from ._until import Until as Until
