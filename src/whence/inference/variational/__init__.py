"""Variational inference: family x objective x gradient estimate x update."""

from ._bbvi import BBVI as BBVI
from ._estimator import (
    AbstractEstimator as AbstractEstimator,
    ClosedFormEntropy as ClosedFormEntropy,
    PathDerivative as PathDerivative,
)
from ._family import (
    AbstractFamily as AbstractFamily,
    FullRank as FullRank,
    MeanField as MeanField,
)
