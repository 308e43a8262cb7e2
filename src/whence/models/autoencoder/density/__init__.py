"""Densities of codes, from which new data are generated."""
