"""Targets with known truth, comparisons, and the suites that authors run."""

from ._compare import Comparison as Comparison
from ._compare import Estimate as Estimate
from ._compare import compare_moments as compare_moments
from ._compare import compare_reference as compare_reference
from ._data_targets import ConjugateRegression as ConjugateRegression
from ._data_targets import GaussianMean as GaussianMean
from ._targets import Autoregression as Autoregression
from ._targets import Funnel as Funnel
from ._targets import Gaussian as Gaussian
from ._targets import LogGamma as LogGamma
from ._targets import Moments as Moments
from ._zoo import ZOO as ZOO
from ._zoo import load_shipped as load_shipped
from ._zoo import shipped as shipped
from ._zoo_types import Entry as Entry
from ._zoo_types import Problem as Problem
