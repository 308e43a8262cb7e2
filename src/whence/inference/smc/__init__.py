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
from ._feynman_kac import FeynmanKacSMC as FeynmanKacSMC
from ._filter import AbstractFilter as AbstractFilter
from ._follow import FixedLag as FixedLag, filter as filter, smooth as smooth
from ._kernels import (
    AbstractKernel as AbstractKernel,
    Hamiltonian as Hamiltonian,
    RandomWalk as RandomWalk,
)
from ._online import OnlineState as OnlineState
from ._particle_filter import ParticleFilter as ParticleFilter
from ._particle_mh import ParticleMH as ParticleMH
from ._resampling import (
    SSP as SSP,
    AbstractResampling as AbstractResampling,
    Killing as Killing,
    Multinomial as Multinomial,
    Residual as Residual,
    Stratified as Stratified,
    Systematic as Systematic,
)
from ._smc2 import SMC2 as SMC2
from ._states import States as States
from ._tempered import TemperedSMC as TemperedSMC
