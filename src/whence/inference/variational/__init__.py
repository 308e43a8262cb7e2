"""Variational inference: families, estimators of the gradient of the ELBO, and `BBVI`."""

from ._bbvi import BBVI as BBVI
from ._estimator import (
    AbstractEstimator as AbstractEstimator,
    ClosedFormEntropy as ClosedFormEntropy,
    PathDerivative as PathDerivative,
)
from ._factors import Blocks as Blocks, Factors as Factors, Point as Point
from ._family import (
    AbstractFamily as AbstractFamily,
    AbstractGaussian as AbstractGaussian,
    FullRank as FullRank,
    MeanField as MeanField,
)
from ._scale_mixture import ScaleMixtureFamily as ScaleMixtureFamily
