"""Autoencoders with uncertainty: priors selected by data, posteriors of both networks."""

from .._fit import AbstractFit as AbstractFit, Adam as Adam
from ._compare import Comparison as Comparison, compare_autoencoders as compare_autoencoders
from ._evidence import linear_log_evidence as linear_log_evidence
from ._importance import HeldOut as HeldOut, importance_log_prob as importance_log_prob
from ._likelihoods import (
    AbstractLikelihood as AbstractLikelihood,
    Bernoulli as Bernoulli,
    Categorical as Categorical,
    ContinuousBernoulli as ContinuousBernoulli,
    Gaussian as Gaussian,
)
from ._model import BayesianAutoencoder as BayesianAutoencoder
from ._networks import Networks as Networks, convolutional as convolutional, dense as dense
from ._posterior import (
    Oddness as Oddness,
    encode as encode,
    generate as generate,
    log_likelihood as log_likelihood,
    oddness as oddness,
    reconstruct as reconstruct,
)
from ._variational import (
    FittedVariational as FittedVariational,
    VariationalAutoencoder as VariationalAutoencoder,
    fit_variational as fit_variational,
)
from .density._mixture import (
    DirichletMixture as DirichletMixture,
    FittedMixture as FittedMixture,
)
from .distance._distributional import (
    Distributional as Distributional,
    distributional_sliced_wasserstein as distributional_sliced_wasserstein,
)
from .distance._sliced import (
    MaxSliced as MaxSliced,
    Sliced as Sliced,
    max_sliced_wasserstein as max_sliced_wasserstein,
    sliced_wasserstein as sliced_wasserstein,
)
from .gp._latent_gp import (
    LatentGP as LatentGP,
    amortise as amortise,
    encode_implicit as encode_implicit,
)
from .gp._sparse import SparseLayer as SparseLayer, squared_exponential as squared_exponential
from .priors._abstract_prior import AbstractPrior as AbstractPrior
from .priors._dswd import DSWD as DSWD
from .priors._flow import FlowPrior as FlowPrior
from .priors._match import (
    HierarchicalKernel as HierarchicalKernel,
    MatchedPrior as MatchedPrior,
    match_prior as match_prior,
)
from .priors._network import RandomNetwork as RandomNetwork
from .priors._priors import (
    FixedPrior as FixedPrior,
    GaussianPrior as GaussianPrior,
    HierarchicalPrior as HierarchicalPrior,
)
from .priors._problem import PriorProblem as PriorProblem
from .priors._select import (
    SelectedPrior as SelectedPrior,
    select_prior as select_prior,
    selected as selected,
)
