"""How a model is written down, conditioned on data, and checked."""

from ._check import CheckReport as CheckReport, check as check
from ._condition import ModelTarget as ModelTarget, condition as condition
from ._frames import Categories as Categories, categories as categories
from ._graph import graph as graph
from ._latent import Coords as Coords, derived as derived, latent as latent
from ._model import Model as Model
