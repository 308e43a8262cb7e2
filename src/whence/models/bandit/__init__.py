"""Bandits: beliefs about arms, policies that choose among them, and their regret.

A belief is a pytree of arrays with axis 0 for the arms; a policy is `init`, `act` and
`update`, pure functions on such a state.
"""

from ._belief import AbstractBelief as AbstractBelief
from ._beta_bernoulli import BetaBernoulli as BetaBernoulli
from ._bounds import bayes_regret_bound as bayes_regret_bound
from ._counts import ArmStatistics as ArmStatistics
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
from ._simulate import simulate as simulate
from ._thompson import (
    BernoulliTS as BernoulliTS,
    GaussianTS as GaussianTS,
    KnownVarianceTS as KnownVarianceTS,
    VarTS as VarTS,
)
