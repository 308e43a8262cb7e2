"""Bandits whose actions have features: one linear model for all of them."""
