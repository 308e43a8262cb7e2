"""Hamiltonian Monte Carlo and its relatives."""

from ._chees import ChEES as ChEES
from ._hmc import HMC as HMC
from ._mclmc import MCLMC as MCLMC
from ._nuts import NUTS as NUTS
