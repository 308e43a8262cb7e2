"""Infinitely wide networks: their kernels, their finite twins, and scale mixtures of them."""

from .large._conditioned import (
    LargeConditioned as LargeConditioned,
    LargeMoments as LargeMoments,
    condition_large as condition_large,
)
from .laws._abstract_law import (
    AbstractDensityLaw as AbstractDensityLaw,
    AbstractLaw as AbstractLaw,
    ScalePosterior as ScalePosterior,
)
from .laws._closed_form import (
    InverseGamma as InverseGamma,
    Jeffreys as Jeffreys,
    PointMass as PointMass,
)
from .laws._normal_mixture import (
    NormalMixture as NormalMixture,
    NormalMixtureMarginals as NormalMixtureMarginals,
)
from .laws._normal_scale_mixture import (
    NormalScaleMixture as NormalScaleMixture,
    ScaleMixtureMarginals as ScaleMixtureMarginals,
)
from .laws._numerical import (
    GIG as GIG,
    BurrXII as BurrXII,
    Draws as Draws,
    FromDistribution as FromDistribution,
    HalfCauchy as HalfCauchy,
    importance_nodes as importance_nodes,
)
from .laws._quadrature import Nodes as Nodes
from .laws._student_t import StudentT as StudentT
from .network._abstract_activation import AbstractActivation as AbstractActivation
from .network._abstract_layer import AbstractLayer as AbstractLayer
from .network._activations import (
    GELU as GELU,
    Activation as Activation,
    Erf as Erf,
    LeakyReLU as LeakyReLU,
    Rbf as Rbf,
    ReLU as ReLU,
    Sin as Sin,
)
from .network._initialisations import (
    AbstractInitialisation as AbstractInitialisation,
    Independent as Independent,
    LowRank as LowRank,
    Orthogonal as Orthogonal,
    Sparse as Sparse,
)
from .network._layers import (
    Conv as Conv,
    Dense as Dense,
    Flatten as Flatten,
    GlobalAveragePooling as GlobalAveragePooling,
    Residual as Residual,
    Serial as Serial,
)
from .network._tiles import Kernels as Kernels
from .process._class_probabilities import (
    class_log_probs as class_log_probs,
    stratified_rows as stratified_rows,
)
from .process._classification import Classification as Classification
from .process._independent_noise import (
    IndependentConditioned as IndependentConditioned,
    IndependentNoise as IndependentNoise,
)
from .process._joint import Joint as Joint
from .process._regression import Regression as Regression
from .process._scale_and_noise import TwoScales as TwoScales
from .process._scale_mixture import (
    ScaleMixture as ScaleMixture,
    ScaleMixtureConditioned as ScaleMixtureConditioned,
)
from .process._softmax import SoftmaxLabels as SoftmaxLabels
from .process._trained import Trained as Trained

Conditioned = ScaleMixtureConditioned
