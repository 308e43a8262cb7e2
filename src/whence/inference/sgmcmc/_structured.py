"""Gradients for groups of latents that are independent of one another: structured SG-MCMC."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ...core._convert import number, whole
from ...core._data import Epoch
from ...core._target import AbstractTarget
from ...core._types import PRNGKey
from ._gradient import (
    AbstractGradient,
    Count,
    Estimate,
    Space,
    Vector,
    batch_field,
    batches_of,
    batching_field,
    check_batches,
)


def as_groups(value: Any) -> Any:
    """Return `groups`: a word, or a number of groups."""
    if isinstance(value, str) and value in ("latents", "coordinates"):
        return value
    if isinstance(value, str) or value is None:
        raise ValueError(
            "`groups` must be 'latents', 'coordinates' or a whole number of groups; got "
            f"{value!r}."
        )
    return whole("groups", least=1)(value)


class History(eqx.Module):
    """Past positions.

    Attributes:
        epoch: State of the batches.
        past: A ring of positions; the newest is not yet past.
    """

    epoch: Epoch
    past: Float[Array, "place dim"]


class StructuredGradient(AbstractGradient):
    """Each group of latents is moved with all others set to draws from their own past.

    What is sampled is the best approximation of the posterior, in Kullback-Leibler
    divergence, by a product over groups, `q_i` proportional to `exp E[log p]` over the other
    groups, of any shape within a group. A past draw of each group is taken independently.

    That takes an evaluation for each group. With `keep` above 0 a position is made in which
    every group is the present one with this probability, or else past, and the gradient is
    scaled by `1 / keep`; `copies` of these are averaged. Then cost does not grow with the
    groups, and `keep` leads from a product of independent groups to the posterior itself (1).

    Attributes:
        batch_size: Rows per batch; None for all.
        batching: `"reshuffle"`, `"symmetric"` or `"iid"`.
        groups: `"latents"` (each array of a position), `"coordinates"`, or a number of blocks
            of about equal size.
        keep: 0, or the probability of the dropout variant.
        copies: Positions to average over, with `keep`.
        history: Past positions remembered.
        every: Evaluations between these.

    References:
        Alexos, Boyd and Mandt (2022), "Structured stochastic gradient MCMC", ICML,
        arXiv:2107.09028, equations 5 and 10.
    """

    batch_size: int | None = batch_field()
    batching: str = batching_field()
    groups: int | str = eqx.field(default="latents", converter=as_groups)
    keep: float = eqx.field(default=0.0, converter=number("keep", least=0, most=1))
    copies: int = eqx.field(default=4, converter=whole("copies", least=1))
    history: int = eqx.field(default=100, converter=whole("history", least=2))
    every: int = eqx.field(default=10, converter=whole("every", least=1))
    is_local: bool = eqx.field(default=False, init=False)
    shows_density: bool = eqx.field(default=False, init=False)
    streams: bool = eqx.field(default=True, init=False)

    def validate(self, target: AbstractTarget) -> None:
        check_batches(self, target)

    def work(self, target: AbstractTarget) -> int | None:
        return None if self.batch_size is None else self.copies * self.batch_size

    def init(self, space: Space, flat: Vector, *, key: PRNGKey) -> History:
        past = jnp.broadcast_to(flat[None], (self.history, flat.size))
        return History(batches_of(self, space.target).init(), past)

    def estimate(
        self, space: Space, flat: Vector, state: History, counter: Count, *, key: PRNGKey
    ) -> Estimate:
        key_rows, key_past, key_keep = jr.split(key, 3)
        rows, epoch = batches_of(self, space.target).next(state.epoch, counter, key=key_rows)
        now = counter // self.every
        place = now % self.history
        past = jax.lax.dynamic_update_index_in_dim(state.past, flat, place, 0)
        labels = self.labels(space, flat)
        total = int(labels.max()) + 1
        copies = total if not self.keep else self.copies
        # How long ago, of each copy and group; what is being written at `place` is not past.
        known = jnp.clip(now, 1, self.history - 1)
        ago = jr.randint(key_past, (copies, total), 1, known + 1, jnp.int32)
        old = past[(place - ago[:, labels]) % self.history, jnp.arange(flat.size)[None]]
        if not self.keep:
            live, scale = jnp.eye(total, dtype=bool), 1.0
        else:
            live = jr.bernoulli(key_keep, self.keep, (copies, total))
            scale = 1 / (self.keep * copies)

        def energy(x):
            mixed = jnp.where(live[:, labels], x[None], old)
            each = jax.vmap(space.log_density, in_axes=(0, None))(mixed, rows)
            return scale * each.sum(), each.mean()

        gradient, log_density = jax.grad(energy, has_aux=True)(flat)
        return log_density, gradient, History(epoch, past)

    def labels(self, space: Space, flat: Vector) -> np.ndarray:
        """Return the number of each coordinate's group."""
        if self.groups == "coordinates":
            return np.arange(flat.size)
        if self.groups == "latents":
            sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(space.form, flat))]
        else:
            sizes = [len(x) for x in np.array_split(np.arange(flat.size), int(self.groups))]
        return np.repeat(np.arange(len(sizes)), sizes)
