"""Bandits: beliefs about arms, policies that choose among them, and their regret.

A belief is a pytree of arrays with axis 0 for the arms; a policy is `init`, `act` and
`update`, pure functions on such a state. Where actions have features, one linear model is the
state for all of them.
"""

from ._policy import (
    AbstractPolicy as AbstractPolicy,
    act_many as act_many,
    load_state as load_state,
    save_state as save_state,
    update_many as update_many,
)
from ._regret import Estimate as Estimate, PolicyRun as PolicyRun, Simulation as Simulation
from ._replay import (
    Evaluation as Evaluation,
    LoggedData as LoggedData,
    inverse_propensity as inverse_propensity,
    replay as replay,
)
from ._simulate import simulate as simulate
from .arms._belief import AbstractBelief as AbstractBelief
from .arms._best_arm import (
    Decision as Decision,
    TopTwoTS as TopTwoTS,
    decide as decide,
    probability_best as probability_best,
)
from .arms._beta_bernoulli import BetaBernoulli as BetaBernoulli
from .arms._environment import (
    AbstractEnvironment as AbstractEnvironment,
    BernoulliArms as BernoulliArms,
    BetaArms as BetaArms,
    GaussianArms as GaussianArms,
    UniformArms as UniformArms,
    sample_instances as sample_instances,
)
from .arms._frequentist import MVTS as MVTS, HondaTakemura as HondaTakemura
from .arms._indices import (
    CHKUCB as CHKUCB,
    UCB1 as UCB1,
    UCBV as UCBV,
    BayesUCB as BayesUCB,
    UCB1Normal as UCB1Normal,
    UCB1Tuned as UCB1Tuned,
)
from .arms._known_variance import KnownVariance as KnownVariance
from .arms._model_thompson import ModelState as ModelState, ModelTS as ModelTS
from .arms._normal_gamma import NormalGamma as NormalGamma
from .arms._regret_bound import bayes_regret_bound as bayes_regret_bound
from .arms._regret_slope import regret_slope as regret_slope
from .arms._statistics import ArmStatistics as ArmStatistics
from .arms._thompson import (
    BernoulliTS as BernoulliTS,
    GaussianTS as GaussianTS,
    KnownVarianceTS as KnownVarianceTS,
    VarTS as VarTS,
)
from .combinatorial._abstract_policy import (
    AbstractCombinatorialPolicy as AbstractCombinatorialPolicy,
    TopK as TopK,
)
from .combinatorial._environment import ContextualCombinatorial as ContextualCombinatorial
from .combinatorial._policies import (
    C2UCB as C2UCB,
    VAC2UCB as VAC2UCB,
    CombinatorialTS as CombinatorialTS,
)
from .contextual._environment import (
    AbstractContextualEnvironment as AbstractContextualEnvironment,
    ContextualLinear as ContextualLinear,
    own_coefficients as own_coefficients,
)
from .contextual._linear import LinearGaussian as LinearGaussian
from .contextual._policies import (
    AbstractContextualPolicy as AbstractContextualPolicy,
    LinearBayesUCB as LinearBayesUCB,
    LinearTS as LinearTS,
    LinUCB as LinUCB,
)
from .contextual._ridge import (
    LinearState as LinearState,
    RidgeState as RidgeState,
    WeightedRidgeState as WeightedRidgeState,
)
from .contextual._simulate import simulate_contextual as simulate_contextual
