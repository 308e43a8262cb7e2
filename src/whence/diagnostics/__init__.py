"""Diagnostics: arrays in, numbers and verdicts out.

`diagnose(variables, stats, ...)` runs all checks that apply and returns a `Report` of
`Finding`s. The statistics are here by themselves too: `convergence` (R-hat, bulk and tail
ESS at once), `rhat`, `ess_bulk`, `ess_tail`, `bfmi`, `weight_ess`, `pareto_khat`.
"""

from ._convergence import (
    Convergence as Convergence,
    bfmi as bfmi,
    convergence as convergence,
    ess_bulk as ess_bulk,
    ess_tail as ess_tail,
    rhat as rhat,
)
from ._diagnose import diagnose as diagnose
from ._report import Finding as Finding, Report as Report
from ._weights import pareto_khat as pareto_khat, weight_ess as weight_ess
