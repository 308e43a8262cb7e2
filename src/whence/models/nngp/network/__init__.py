"""Descriptions of networks: layers, activations, kernels, and finite twins."""
