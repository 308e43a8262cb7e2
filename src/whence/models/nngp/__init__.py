"""Infinitely wide networks: their kernels, their finite twins, and scale mixtures of them."""

from ._activation import AbstractActivation as AbstractActivation
from ._activations import (
    GELU as GELU,
    Activation as Activation,
    Erf as Erf,
    LeakyReLU as LeakyReLU,
    Rbf as Rbf,
    ReLU as ReLU,
    Sin as Sin,
)
from ._class_probabilities import (
    class_log_probs as class_log_probs,
    stratified_rows as stratified_rows,
)
from ._classification import Classification as Classification
from ._dynamics import Trained as Trained
from ._independent import (
    IndependentConditioned as IndependentConditioned,
    IndependentNoise as IndependentNoise,
)
from ._initialisations import (
    AbstractInitialisation as AbstractInitialisation,
    Independent as Independent,
    LowRank as LowRank,
    Orthogonal as Orthogonal,
    Sparse as Sparse,
)
from ._joint import Joint as Joint
from ._large import (
    LargeConditioned as LargeConditioned,
    LargeMoments as LargeMoments,
    condition_large as condition_large,
)
from ._law import (
    AbstractDensityLaw as AbstractDensityLaw,
    AbstractLaw as AbstractLaw,
    ScalePosterior as ScalePosterior,
)
from ._laws import (
    GIG as GIG,
    BurrXII as BurrXII,
    Draws as Draws,
    FromDistribution as FromDistribution,
    HalfCauchy as HalfCauchy,
    importance_nodes as importance_nodes,
)
from ._laws_closed import (
    InverseGamma as InverseGamma,
    Jeffreys as Jeffreys,
    PointMass as PointMass,
)
from ._layer import AbstractLayer as AbstractLayer
from ._layers import (
    Conv as Conv,
    Dense as Dense,
    Flatten as Flatten,
    GlobalAveragePooling as GlobalAveragePooling,
    Residual as Residual,
    Serial as Serial,
)
from ._mixture_of_normals import (
    NormalMixture as NormalMixture,
    NormalMixtureMarginals as NormalMixtureMarginals,
)
from ._process import Conditioned as Conditioned, ScaleMixture as ScaleMixture
from ._quadrature import Nodes as Nodes
from ._regression import Regression as Regression
from ._scale_mixture import (
    NormalScaleMixture as NormalScaleMixture,
    ScaleMixtureMarginals as ScaleMixtureMarginals,
)
from ._softmax import SoftmaxLabels as SoftmaxLabels
from ._student import StudentT as StudentT
from ._tiles import Kernels as Kernels
from ._two_scales import TwoScales as TwoScales
