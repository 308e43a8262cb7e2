"""Diagnostics: arrays in, numbers and verdicts out.

`diagnose(variables, stats, ...)` runs all checks that apply and returns a `Report` of
`Finding`s. The statistics are here by themselves too: `convergence` (R-hat, bulk and tail
ESS at once), `rhat`, `ess_bulk`, `ess_tail`, `mcse`, `bfmi`, `weight_ess`, `pareto_khat`.

Scores of predictions against what came: `crps_...`, `interval_score`, `coverage` of real
numbers; `reliability`, `brier`, `separation` of classes.
"""

from ._classification import (
    Reliability as Reliability,
    Separation as Separation,
    brier as brier,
    entropy as entropy,
    reliability as reliability,
    separation as separation,
)
from ._convergence import (
    Convergence as Convergence,
    bfmi as bfmi,
    convergence as convergence,
    ess_bulk as ess_bulk,
    ess_tail as ess_tail,
    rhat as rhat,
)
from ._diagnose import diagnose as diagnose
from ._mcse import MonteCarloError as MonteCarloError, mcse as mcse
from ._records import (
    AbstractRecord as AbstractRecord,
    AdaptedChains as AdaptedChains,
    Optimum as Optimum,
    ParticleHistory as ParticleHistory,
    Remarks as Remarks,
    UnadjustedChains as UnadjustedChains,
    VariationalFit as VariationalFit,
)
from ._report import Finding as Finding, Report as Report
from ._scores import (
    Coverage as Coverage,
    coverage as coverage,
    crps_draws as crps_draws,
    crps_normal as crps_normal,
    crps_normal_mixture as crps_normal_mixture,
    crps_student_t as crps_student_t,
    interval_score as interval_score,
)
from ._weights import pareto_khat as pareto_khat, weight_ess as weight_ess
