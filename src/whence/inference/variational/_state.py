"""What a fit carries: from one block of updates to the next, and within a block."""

from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, Int, PyTree

from ...core._data import Epoch
from ._anchor import Anchor
from ._pace import Pace
from ._watch import GradientNoise, Watch


class BBVIState(eqx.Module):
    """What the next step needs.

    Attributes:
        params: Parameters of the family.
        optimizer: State of the optimiser.
        epoch: Running epoch of the minibatches.
        num_updates: Updates made.
        num_nonfinite: Updates left out because their gradient was not finite.
        failures: How many of these came last, in a row.
        pace: How far the fit has come.
        gradient: Moments of the gradient.
        watch: Whether the fit diverges, and its best parameters; of own optimisers and updates.
        mean: Mean parameters over the second half of the steps, if these are asked for.
        anchor: What makes less noise of batches, where something does.
    """

    params: PyTree
    optimizer: PyTree
    epoch: Epoch
    num_updates: Int[Array, ""]
    num_nonfinite: Int[Array, ""]
    failures: Int[Array, ""]
    pace: Pace
    gradient: GradientNoise
    watch: Watch | None
    mean: PyTree | None
    anchor: Anchor | None


class Run(NamedTuple):
    """What changes from update to update of a block."""

    params: PyTree
    optimizer: PyTree
    epoch: Epoch
    gradient: Float[Array, " entry"]  # of the last update that was made
