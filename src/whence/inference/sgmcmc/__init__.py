"""Stochastic-gradient Langevin dynamics, its preconditioners and decays of the step size."""

from ._decay import (
    AbstractDecay as AbstractDecay,
    ConstantStep as ConstantStep,
    PolynomialDecay as PolynomialDecay,
)
from ._gradient import MinibatchGradient as MinibatchGradient
from ._preconditioner import (
    AbstractPreconditioner as AbstractPreconditioner,
    Identity as Identity,
    RMSprop as RMSprop,
)
from ._sgld import SGLD as SGLD
