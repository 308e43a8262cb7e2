"""Few-shot learning: weights of a network vary by task, and the law of them is learned.

`NIWMeta` is the model, `OneTimeIterates` learns it from `Tasks` or `Episodes` in
`whence.train`, `adapt` finds the posterior of a new task, which predicts.
"""

from ._adapt import AdaptedTask as AdaptedTask, adapt as adapt
from ._coordinate import Ascended as Ascended, coordinate_ascent as coordinate_ascent
from ._covariance import (
    AbstractCovariance as AbstractCovariance,
    Diagonal as Diagonal,
    Full as Full,
    Kronecker as Kronecker,
    LowRank as LowRank,
)
from ._diagnose import diagnose as diagnose
from ._law import NIW as NIW, ProductNIW as ProductNIW
from ._likelihood import (
    AbstractLikelihood as AbstractLikelihood,
    Categorical as Categorical,
    Gaussian as Gaussian,
    Prototypes as Prototypes,
)
from ._local import (
    AbstractLocal as AbstractLocal,
    GGNLaplace as GGNLaplace,
    Quadratic as Quadratic,
    SGLDMoments as SGLDMoments,
    WeightGaussian as WeightGaussian,
)
from ._meta import NIWMeta as NIWMeta, Population as Population, Problem as Problem
from ._plates import plates as plates
from ._prediction import Prediction as Prediction
from ._rivals import PointMeta as PointMeta
from ._tasks import (
    AbstractTasks as AbstractTasks,
    Batch as Batch,
    Episodes as Episodes,
    Tasks as Tasks,
)
from ._train import (
    AbstractMetaTraining as AbstractMetaTraining,
    Learned as Learned,
    OneTimeIterates as OneTimeIterates,
)
from ._twin import SummedEvidence as SummedEvidence, Twin as Twin
