"""Bandits: beliefs about arms, policies that choose among them, and their regret.

A belief is a pytree of arrays with axis 0 for the arms; a policy is `init`, `act` and
`update`, pure functions on such a state. Where actions have features, one linear model is the
state for all of them.
"""

from ._asymptotic import regret_slope as regret_slope
from ._belief import AbstractBelief as AbstractBelief
from ._best_arm import (
    Decision as Decision,
    TopTwoTS as TopTwoTS,
    decide as decide,
    probability_best as probability_best,
)
from ._beta_bernoulli import BetaBernoulli as BetaBernoulli
from ._bounds import bayes_regret_bound as bayes_regret_bound
from ._combinatorial import (
    AbstractCombinatorialPolicy as AbstractCombinatorialPolicy,
    TopK as TopK,
)
from ._combinatorial_environment import ContextualCombinatorial as ContextualCombinatorial
from ._combinatorial_policy import (
    C2UCB as C2UCB,
    VAC2UCB as VAC2UCB,
    CombinatorialTS as CombinatorialTS,
)
from ._contextual_environment import (
    AbstractContextualEnvironment as AbstractContextualEnvironment,
    ContextualLinear as ContextualLinear,
    own_coefficients as own_coefficients,
)
from ._contextual_policy import (
    AbstractContextualPolicy as AbstractContextualPolicy,
    LinearBayesUCB as LinearBayesUCB,
    LinearTS as LinearTS,
    LinUCB as LinUCB,
)
from ._counts import ArmStatistics as ArmStatistics
from ._engine_belief import ModelState as ModelState, ModelTS as ModelTS
from ._environment import (
    AbstractEnvironment as AbstractEnvironment,
    BernoulliArms as BernoulliArms,
    BetaArms as BetaArms,
    GaussianArms as GaussianArms,
    UniformArms as UniformArms,
    sample_instances as sample_instances,
)
from ._frequentist import MVTS as MVTS, HondaTakemura as HondaTakemura
from ._indices import (
    CHKUCB as CHKUCB,
    UCB1 as UCB1,
    UCBV as UCBV,
    BayesUCB as BayesUCB,
    UCB1Normal as UCB1Normal,
    UCB1Tuned as UCB1Tuned,
)
from ._known_variance import KnownVariance as KnownVariance
from ._linear import LinearGaussian as LinearGaussian
from ._normal_gamma import NormalGamma as NormalGamma
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
from ._ridge import LinearState as LinearState, RidgeState as RidgeState
from ._simulate import simulate as simulate
from ._simulate_contextual import simulate_contextual as simulate_contextual
from ._thompson import (
    BernoulliTS as BernoulliTS,
    GaussianTS as GaussianTS,
    KnownVarianceTS as KnownVarianceTS,
    VarTS as VarTS,
)
