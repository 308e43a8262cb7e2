"""Front ends: what was written for another library, or by hand, becomes a `Target`."""

from ..language._module_priors import FanIn as FanIn
from ._bayesian import BayesianModule as BayesianModule, bayesian as bayesian
from ._bayesian_heads import (
    classification as classification,
    poisson as poisson,
    regression as regression,
)
from ._log_density import (
    LogDensityTarget as LogDensityTarget,
    from_log_density as from_log_density,
)
from ._numpyro import from_numpyro as from_numpyro
from ._numpyro_target import NumpyroTarget as NumpyroTarget
from ._tfp import TFPTarget as TFPTarget, from_tfp as from_tfp
