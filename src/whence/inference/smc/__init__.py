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
from ._tempered import TemperedSMC as TemperedSMC
