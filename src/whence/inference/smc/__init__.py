"""Sequential Monte Carlo: one particle driver, and the engines that run on it."""

from ...core._feynman_kac import AbstractFeynmanKac as AbstractFeynmanKac
from ._data_tempered import DataTemperedSMC as DataTemperedSMC
from ._driver import (
    Cloud as Cloud,
    Resampler as Resampler,
    advance as advance,
    start as start,
    weigh as weigh,
)
from ._kernels import (
    AbstractKernel as AbstractKernel,
    Hamiltonian as Hamiltonian,
    RandomWalk as RandomWalk,
)
from ._resampling import (
    AbstractResampling as AbstractResampling,
    Multinomial as Multinomial,
    Residual as Residual,
    Stratified as Stratified,
    Systematic as Systematic,
)
from ._tempered import TemperedSMC as TemperedSMC
