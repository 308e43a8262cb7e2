"""Stochastic-gradient MCMC: gradients, integrators, preconditioners and decays, composed."""

from ._decay import (
    AbstractDecay as AbstractDecay,
    ConstantStep as ConstantStep,
    Cyclical as Cyclical,
    FromOptax as FromOptax,
    PolynomialDecay as PolynomialDecay,
)
from ._engine import AbstractSGMCMC as AbstractSGMCMC
from ._federated import FederatedGradient as FederatedGradient
from ._gradient import (
    AbstractGradient as AbstractGradient,
    ControlVariate as ControlVariate,
    MinibatchGradient as MinibatchGradient,
)
from ._methods import (
    SGHMC as SGHMC,
    SGLD as SGLD,
    SGMCMC as SGMCMC,
    SGNHT as SGNHT,
    CyclicalSGLD as CyclicalSGLD,
    FederatedSGLD as FederatedSGLD,
    StructuredSGMCMC as StructuredSGMCMC,
)
from ._preconditioner import (
    AbstractPreconditioner as AbstractPreconditioner,
    Curvature as Curvature,
    Fisher as Fisher,
    Identity as Identity,
    RMSprop as RMSprop,
    ScaleAdapted as ScaleAdapted,
)
from ._record import StochasticGradientChains as StochasticGradientChains
from ._structured import StructuredGradient as StructuredGradient
