"""Hamiltonian Monte Carlo and its relatives."""

from ._hmc import HMC as HMC
from ._nuts import NUTS as NUTS
