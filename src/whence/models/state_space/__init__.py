"""State-space models: a hidden state that moves, and data that see it."""

from ._model import StateSpaceModel as StateSpaceModel
