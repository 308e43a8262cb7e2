"""Can it be trusted? Tests of a model and an engine together, on data that they simulate.

`sbc` fits many simulated data sets and looks where the truth lies among the draws;
`geweke` lets an engine's transition and the simulator alternate and looks whether the
prior survives. Both need no known answer, only that the prior can be drawn from.
"""

from ._calibration import Calibration as Calibration
from ._geweke import geweke as geweke
from ._joint import JointTest as JointTest
from ._sbc import sbc as sbc
