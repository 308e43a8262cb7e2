"""Posteriors: draws, what is computed from them, and their export to ArviZ."""

from ._bridge import Evidence as Evidence, bridge_sampling as bridge_sampling
from ._compare import compare as compare
from ._posterior import Posterior as Posterior
from ._prior_predictive import prior_predictive as prior_predictive
