"""Infinitely wide networks: their kernels, their finite twins, and scale mixtures of them."""

from ._activation import AbstractActivation as AbstractActivation
from ._activations import (
    GELU as GELU,
    Activation as Activation,
    Erf as Erf,
    LeakyReLU as LeakyReLU,
    Rbf as Rbf,
    ReLU as ReLU,
    Sin as Sin,
)
from ._initialisations import (
    AbstractInitialisation as AbstractInitialisation,
    Independent as Independent,
    LowRank as LowRank,
    Orthogonal as Orthogonal,
    Sparse as Sparse,
)
from ._layer import AbstractLayer as AbstractLayer
from ._layers import (
    Conv as Conv,
    Dense as Dense,
    Flatten as Flatten,
    GlobalAveragePooling as GlobalAveragePooling,
    Residual as Residual,
    Serial as Serial,
)
from ._tiles import Kernels as Kernels
