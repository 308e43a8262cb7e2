"""Distances between samples by their projections on lines."""
