"""Targets with known truth, comparisons, and the suites that authors run."""

from ._compare import (
    Comparison as Comparison,
    Estimate as Estimate,
    compare_moments as compare_moments,
    compare_reference as compare_reference,
)
from ._conformance_engine import check_engine as check_engine, check_truth as check_truth
from ._conformance_model import check_model as check_model
from ._conformance_target import check_target as check_target
from ._data_targets import (
    ConjugateRegression as ConjugateRegression,
    GaussianMean as GaussianMean,
)
from ._targets import (
    Autoregression as Autoregression,
    Funnel as Funnel,
    Gaussian as Gaussian,
    LogGamma as LogGamma,
    Moments as Moments,
)
from ._zoo import ZOO as ZOO, load_shipped as load_shipped, shipped as shipped
from ._zoo_types import Entry as Entry, Problem as Problem
