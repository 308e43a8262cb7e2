"""Families of models with exact or special-purpose inference, one package each."""
