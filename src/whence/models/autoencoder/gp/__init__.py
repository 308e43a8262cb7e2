"""Gaussian processes as priors of codes."""
