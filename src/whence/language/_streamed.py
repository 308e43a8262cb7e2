"""The posterior given data that are never in memory together."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core._key import seeded
from ..core._stream import Stream
from ..core._target import AbstractDescribedTarget, LatentShape
from ..core._types import PRNGKey
from ._local import row_axes
from ._model import Model


class StreamTarget(AbstractDescribedTarget):
    """A model's target of which some rows are at hand; made by `condition` of a `Stream`.

    Observed data, inputs and pointwise log likelihoods are not kept, so that a posterior has
    no such groups; predictions need inputs.

    Attributes:
        target: The target of the rows at hand.
        stream: Where the rows come from.
    """

    target: Any
    stream: Stream

    @property
    def num_data(self) -> int | None:
        return self.stream.num_data

    def at_hand(self) -> Any:
        """Return the target of the rows at hand alone."""
        return self.target

    def with_slab(self, index: int) -> "StreamTarget":
        """Return this target with another slab of its stream at hand."""
        return dataclasses.replace(self, target=self._given(self.stream.source.read(index)))

    def _given(self, rows: tuple) -> Any:
        """Return the target of other rows, in the types of those that were checked."""
        old = (self.target.y, *self.target.inputs)
        y, *inputs = jax.tree.map(lambda new, like: jnp.asarray(new, like.dtype), rows, old)
        return dataclasses.replace(self.target, y=y, inputs=tuple(inputs))

    def log_density(self, position):
        raise ValueError(
            "The log density needs all rows, and those of a stream are never together. Take an "
            "engine of minibatches, as `SGLD(batch_size=100)`."
        )

    def log_likelihood(self, position, rows=None):
        if rows is None:
            return self.log_density(position)
        if self.stream.slab is None:
            return self._given(self.stream.make(rows)).log_likelihood(position)
        return self.target.log_likelihood(position, rows)

    @seeded
    def init(self, *, key: PRNGKey) -> dict[str, Array]:
        return self.target.init(key=key)

    def constrain(self, position):
        return self.target.constrain(position)

    def unconstrain(self, draw: Model | Mapping[str, Array]) -> dict[str, Array]:
        """As `ModelTarget.unconstrain`."""
        return self.target.unconstrain(draw)

    def log_prior(self, position):
        return self.target.log_prior(position)

    def log_jacobian(self, position):
        """As `ModelTarget.log_jacobian`."""
        return self.target.log_jacobian(position)

    def log_prior_terms(self, draw: Model) -> dict[str, Array]:
        """As `ModelTarget.log_prior_terms`."""
        return self.target.log_prior_terms(draw)

    @property
    def latents(self) -> tuple[LatentShape, ...]:
        """The latents that are not fixed, in the order of the model."""
        return self.target.latents

    def labelled(self, draws: Model) -> Model:
        """Return draws with the labels of this model's axes."""
        return self.target.labelled(draws)

    @seeded
    def sample_prior(self, *, key: PRNGKey) -> Model:
        return self.target.sample_prior(key=key)

    def variables(self, draw):
        return self.target.variables(draw)

    @property
    def dims(self):
        return self.target.dims

    @property
    def coords(self):
        return self.target.coords

    @property
    def observed_data(self):
        return {}

    @property
    def constant_data(self):
        return {}

    def pointwise(self, draw):
        return {}

    def new_inputs(self, inputs: tuple, named: Mapping[str, Any]) -> tuple:
        """As `ModelTarget.new_inputs`."""
        return self.target.new_inputs(inputs, named)

    def name_inputs(self, inputs: tuple) -> dict[str, Array]:
        """As `ModelTarget.name_inputs`."""
        return self.target.name_inputs(inputs)

    def leaf_name(self, path: str) -> str:
        """As `ModelTarget.leaf_name`."""
        return self.target.leaf_name(path.removeprefix("target."))

    def predict(self, draw, inputs, *, key):
        if inputs is None:
            raise NotImplementedError("Data of a stream are not kept: give `predict` inputs.")
        return self.target.predict(draw, inputs, key=key)


def first_rows(model: Model, stream: Stream, inputs: tuple) -> tuple:
    """Return the first rows of a stream, `(y, *inputs)`, or say why there can be none."""
    if inputs:
        raise ValueError(
            "`inputs` must come with the stream, whose rows are `(y, *inputs)`; got "
            f"{len(inputs)} besides."
        )
    if row_axes(model):
        raise ValueError(
            f"{type(model).__name__} has local latents, one value per data row, which must be "
            "in memory together: give arrays in place of a stream."
        )
    if type(model).prepare is not Model.prepare:
        raise ValueError(
            f"{type(model).__name__} prepares its data (`prepare`), which is done once: give "
            "arrays in place of a stream."
        )
    return stream.first()


def streamed(target: Any, stream: Stream) -> StreamTarget:
    """Return the target of a stream, given that of its first rows."""
    if target.rows is None:
        raise ValueError(
            "`y` may be a stream only if the log likelihood has one entry per row; that of "
            f"{type(target.model).__name__} has not."
        )
    return StreamTarget(target, stream)
