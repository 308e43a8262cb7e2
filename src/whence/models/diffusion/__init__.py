"""Diffusion models, and Feynman-Kac correctors that make steering them exact."""

from .._fit import Adam as Adam
from ._correct import (
    Corrected as Corrected,
    annealed as annealed,
    geometric as geometric,
    product as product,
    tilted as tilted,
)
from ._mixture import GaussianMixture as GaussianMixture
from ._noise import (
    AbstractNoise as AbstractNoise,
    AbstractScaledNoise as AbstractScaledNoise,
    LinearNoise as LinearNoise,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
)
from ._score import ScoreMatching as ScoreMatching, ScoreNetwork as ScoreNetwork
