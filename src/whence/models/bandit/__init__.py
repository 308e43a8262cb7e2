"""Bandits: beliefs about arms, policies that choose among them, and their regret.

A belief is a pytree of arrays with axis 0 for the arms; a policy is `init`, `act` and
`update`, pure functions on such a state.
"""

from ._belief import AbstractBelief as AbstractBelief
from ._beta_bernoulli import BetaBernoulli as BetaBernoulli
from ._known_variance import KnownVariance as KnownVariance
from ._linear import LinearGaussian as LinearGaussian
from ._normal_gamma import NormalGamma as NormalGamma
