"""Variational inference: families, objectives, estimators, updates; other engines."""

from ._bbvi import BBVI as BBVI
from ._estimator import (
    AbstractEstimator as AbstractEstimator,
    ClosedFormEntropy as ClosedFormEntropy,
    PathDerivative as PathDerivative,
    RejectionSampling as RejectionSampling,
    ScoreFunction as ScoreFunction,
    TotalDerivative as TotalDerivative,
)
from ._factors import Blocks as Blocks, Factors as Factors, Point as Point
from ._family import (
    AbstractFamily as AbstractFamily,
    AbstractGaussian as AbstractGaussian,
    FullRank as FullRank,
    MeanField as MeanField,
)
from ._flow import (
    AbstractLayer as AbstractLayer,
    Flow as Flow,
    Planar as Planar,
    Radial as Radial,
)
from ._flowjax import Autoregressive as Autoregressive, Coupling as Coupling
from ._gamma import Gamma as Gamma
from ._laplace import Laplace as Laplace
from ._local import Amortised as Amortised, Local as Local
from ._low_rank import LowRank as LowRank
from ._objective import (
    CIWAE as CIWAE,
    ELBO as ELBO,
    IWAE as IWAE,
    MIWAE as MIWAE,
    PIWAE as PIWAE,
    AbstractObjective as AbstractObjective,
    ForwardKL as ForwardKL,
    LogVariance as LogVariance,
    Renyi as Renyi,
)
from ._pathfinder import Pathfinder as Pathfinder
from ._scale_mixture import ScaleMixtureFamily as ScaleMixtureFamily
from ._svgd import SVGD as SVGD
from ._update import (
    AbstractUpdate as AbstractUpdate,
    BuresWasserstein as BuresWasserstein,
    Proximal as Proximal,
)
