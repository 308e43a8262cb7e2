"""Diagnostics: arrays in, numbers and verdicts out.

`diagnose(variables, stats, ...)` runs all checks that apply and returns a `Report` of
`Finding`s. The statistics are here by themselves too: `convergence` (R-hat, bulk and tail
ESS at once), `rhat`, `ess_bulk`, `ess_tail`, `bfmi`, `weight_ess`, `pareto_khat`.
"""

from ._convergence import Convergence as Convergence
from ._convergence import bfmi as bfmi
from ._convergence import convergence as convergence
from ._convergence import ess_bulk as ess_bulk
from ._convergence import ess_tail as ess_tail
from ._convergence import rhat as rhat
from ._diagnose import diagnose as diagnose
from ._report import Finding as Finding
from ._report import Report as Report
from ._weights import pareto_khat as pareto_khat
from ._weights import weight_ess as weight_ess
