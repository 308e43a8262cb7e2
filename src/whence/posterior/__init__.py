"""Draws, and what is asked of them."""

from ._posterior import Posterior as Posterior
