"""Point estimates: the maximum of the posterior density, or of the likelihood."""

from ._map import MAP as MAP
