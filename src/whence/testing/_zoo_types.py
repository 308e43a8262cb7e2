"""What an entry of the zoo of models is made of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..language._model import Model
from ._compare import scalars


class Problem(NamedTuple):
    """A model with its data: `whence.condition(problem.model, problem.y, *problem.inputs)`.

    Attributes:
        model: The model, not yet drawn.
        y: Observed values: an array, or a dict of arrays.
        inputs: What the model's `likelihood` takes.
    """

    model: Model
    y: Any
    inputs: tuple


Columns = Callable[[Mapping[str, Any]], Problem]


class Entry(NamedTuple):
    """One posterior of posteriordb.

    Attributes:
        build: From the data under Stan's names to the model with its data.
        variables: Name of the latent or derived value by Stan's name, for those that have
            reference draws.
    """

    build: Columns
    variables: Mapping[str, str]

    def named_as_in_stan(self, draws: Any) -> dict[str, np.ndarray]:
        """Scalar variables named as in Stan, `beta[1]`.

        Args:
            draws: Arrays of shape `(chain, draw, ...)`, by the model's names; anything with
                `draws[name]` will do, a `Posterior` too.

        Returns:
            Arrays of shape `(chain, draw)`.
        """
        renamed = {stan: draws[ours] for stan, ours in self.variables.items()}
        return scalars(renamed, batch_ndim=2)
