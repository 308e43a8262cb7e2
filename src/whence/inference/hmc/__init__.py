"""Hamiltonian Monte Carlo and its relatives."""

from ._chees import ChEES as ChEES
from ._estimate import (
    AbstractEstimator as AbstractEstimator,
    AutoEstimator as AutoEstimator,
    CovarianceEstimator as CovarianceEstimator,
    DiagonalEstimator as DiagonalEstimator,
    LowRankEstimator as LowRankEstimator,
    Moments as Moments,
)
from ._hmc import HMC as HMC
from ._isokinetic import (
    AbstractIntegrator as AbstractIntegrator,
    Leapfrog as Leapfrog,
    MinimalNorm as MinimalNorm,
)
from ._mclmc import MCLMC as MCLMC
from ._metric import (
    AbstractMetric as AbstractMetric,
    DenseMetric as DenseMetric,
    DiagonalMetric as DiagonalMetric,
    LowRankMetric as LowRankMetric,
)
from ._nuts import NUTS as NUTS
