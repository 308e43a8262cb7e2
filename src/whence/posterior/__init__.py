"""Posteriors: draws, what is computed from them, and their export to ArviZ."""

from ._posterior import Posterior as Posterior
