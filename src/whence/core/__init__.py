"""The five abstractions: model, target, engine, loop, posterior. No algorithm, no model."""

from ._cache import clear_programs as clear_programs
from ._cache import compiled as compiled
from ._check import CheckReport as CheckReport
from ._check import check as check
from ._condition import ModelTarget as ModelTarget
from ._condition import condition as condition
from ._data import Minibatches as Minibatches
from ._dtype import enable_x64 as enable_x64
from ._engine import (
    AbstractEngine as AbstractEngine,
)
from ._dtype import enable_x64 as enable_x64
from ._engine import (
    Info as Info,
)
from ._dtype import enable_x64 as enable_x64
from ._engine import (
    Sample as Sample,
)
from ._dtype import enable_x64 as enable_x64
from ._engine import (
    Schedule as Schedule,
)
from ._dtype import enable_x64 as enable_x64
from ._engine import (
    Trace as Trace,
)
from ._dtype import enable_x64 as enable_x64
from ._engine import (
    never as never,
)
from ._export import load as load
from ._infer import (
    InferenceError as InferenceError,
)
from ._infer import (
    InferenceWarning as InferenceWarning,
)
from ._infer import (
    infer as infer,
)
from ._latent import Coords as Coords
from ._latent import derived as derived
from ._latent import latent as latent
from ._model import Model as Model
from ._posterior import Posterior as Posterior
from ._results import RESULTS as RESULTS
from ._target import (
    AbstractDataTarget as AbstractDataTarget,
)
from ._target import (
    AbstractDescribedTarget as AbstractDescribedTarget,
)
from ._target import (
    AbstractTarget as AbstractTarget,
)
