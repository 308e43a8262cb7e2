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
from ._filter import OnlineState as OnlineState, ParticleFilter as ParticleFilter
from ._follow import FixedLag as FixedLag, filter as filter, smooth as smooth
from ._kernels import (
    AbstractKernel as AbstractKernel,
    Hamiltonian as Hamiltonian,
    Independent as Independent,
    Langevin as Langevin,
    RandomWalk as RandomWalk,
)
from ._metric import (
    AbstractMetric as AbstractMetric,
    Factor as Factor,
    ParticleCovariance as ParticleCovariance,
)
from ._particle_gibbs import ParticleGibbs as ParticleGibbs
from ._particle_mh import ParticleMH as ParticleMH
from ._path import (
    AbstractPath as AbstractPath,
    PriorPath as PriorPath,
    ReferencePath as ReferencePath,
)
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
from ._transformers import (
    Nested as Nested,
    Population as Population,
    along as along,
    extend as extend,
    flatten as flatten,
    marginal as marginal,
    metropolis as metropolis,
    move as move,
    particle_mh as particle_mh,
    push_evidence as push_evidence,
    resample as resample,
    score as score,
    spawn as spawn,
    then as then,
)
