"""Stochastic differential equations with memory: driven by fractional Brownian motion."""

from ._bank import Bank as Bank
from ._controlled import ControlledPath as ControlledPath
from ._noise import FractionalNoise as FractionalNoise
from ._report import ErrorReport as ErrorReport
from ._sde import FractionalSDE as FractionalSDE
