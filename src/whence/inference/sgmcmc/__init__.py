"""Stochastic-gradient samplers: gradient estimate x integrator x preconditioner x decay."""

from ._decay import AbstractDecay as AbstractDecay
from ._decay import ConstantStep as ConstantStep
from ._decay import PolynomialDecay as PolynomialDecay
from ._gradient import MinibatchGradient as MinibatchGradient
from ._preconditioner import AbstractPreconditioner as AbstractPreconditioner
from ._preconditioner import Identity as Identity
from ._preconditioner import RMSprop as RMSprop
from ._sgld import SGLD as SGLD
