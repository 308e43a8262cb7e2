"""Conditioning on many observations by products with the kernel."""
