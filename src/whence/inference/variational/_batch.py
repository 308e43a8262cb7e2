"""What one update sees: family, parameters and log densities at the rows of a minibatch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ...core._data import log_density_estimate
from ...core._family import OfBatches, bound
from ...core._flat import flat_view, position_shapes
from ...core._target import AbstractTarget, HasLocals, local_names
from ...core._types import PRNGKey
from ._anchor import Anchor
from ._factors import Factors, Point
from ._family import AbstractFamily, AbstractGaussian, Layout
from ._flat import layout_of, on_flat
from ._local import AbstractByRow, Amortised, at_rows, factors_of, has_rows
from ._objective import ELBO, AbstractObjective, LogVariance
from ._terms import Terms

TOGETHER = 2**22  # random numbers drawn at once, at most: 16 or 32 MB


class Batch(NamedTuple):
    """A minibatch of a target, as a family sees it.

    Attributes:
        target: The target.
        rows: Numbers of the rows; None for all, where no part of the family is by row.
        family: The family, bound to what these rows see of a position.
        params: Its parameters there.
        scale: How many rows each of the target stands for, where it is of these rows alone.
        anchor: What corrects log densities by these rows, if anything does.
    """

    target: Any
    rows: Array | None
    family: AbstractFamily
    params: PyTree
    scale: float | None = None
    anchor: Anchor | None = None

    @staticmethod
    def of(
        target: AbstractTarget, family: AbstractFamily, params: PyTree, rows: Any
    ) -> "Batch":
        """Return the batch of some rows (None: all).

        Args:
            target: The target.
            family: The family as the user gave it.
            params: Parameters of all rows.
            rows: Numbers of the rows.
        """
        if rows is not None and isinstance(family, OfBatches):
            own, part = family.of_rows(target, rows)
            whole: Any = target
            scale = whole.num_data / len(rows)
            return Batch(part, None, bound(own, part, layout_of(part)), params, scale)
        if not has_rows(family):
            return Batch(target, rows, bound(family, target, layout_of(target)), params)
        assert isinstance(target, HasLocals)
        rows = every_row(target) if rows is None else rows
        own = family.bind(layout_of(target, len(rows)))
        return Batch(target, rows, own, at_rows(own, params, rows, target))

    @property
    def view(self) -> tuple[Float[Array, " dim"], Any]:
        """A flat position of zeros, and what gives one its structure back."""
        if not has_rows(self.family):
            return flat_view(self.target)
        whole = position_shapes(self.target)
        seen = jax.eval_shape(self.target.at_rows, whole, self.rows)
        return ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), seen))

    @property
    def layout(self) -> Layout:
        """Names and sizes of the parts of a flat position, as the family sees it."""
        if self.rows is None or not has_rows(self.family):
            return layout_of(self.target)
        return layout_of(self.target, len(self.rows))

    @property
    def mask(self) -> np.ndarray:
        """Which coordinates of a flat position are the same in all draws."""
        return np.repeat(self.family.shared(self.layout), [part[1] for part in self.layout])

    def noise(self, updates: int, samples: int, key: PRNGKey) -> PyTree:
        """Return noise for some updates, leading axes `(update, sample)`; or their keys.

        At once, because each call has a cost of its own; unless that takes much memory.
        """
        like = self.view[0]
        if updates * samples * like.size > TOGETHER:
            return jr.split(key, updates)
        drawn = self.family.noise(like, updates * samples, key=key)
        return jax.tree.map(lambda x: x.reshape(updates, samples, *x.shape[1:]), drawn)

    def drawn(self, updates: int, samples: int, noise: PyTree) -> PyTree:
        """Return the noise of one of these updates, given that or a key."""
        like = self.view[0]
        if updates * samples * like.size <= TOGETHER:
            return noise
        return self.family.noise(like, samples, key=noise)

    def log_densities(self, positions: Float[Array, "sample dim"]) -> Any:
        """Return log densities at flat positions, as `Terms` where parts are by row."""
        target, rows = self.target, self.rows
        by_row = has_rows(self.family)

        def density(x) -> Any:
            if self.scale is not None:
                shared, each = target.log_joint_rows(x, every_row(target))
                return shared + self.scale * jnp.sum(each)
            if not by_row or rows is None:
                return log_density_estimate(target, x, rows)
            shared, each = target.log_joint_rows(x, rows)
            return Terms(shared, each, target.num_data / len(rows))

        _, unravel = self.view
        one = on_flat(density, self.family.shared(self.layout), unravel, positions[0])
        values = jax.vmap(one)(positions)
        if self.anchor is None:
            return values
        by_rows = lambda x: density(unravel(x))
        return values + self.anchor.correction(by_rows, positions)


def every_row(target: Any) -> Array:
    """Return the numbers of all rows."""
    return jnp.arange(target.num_data, dtype=jnp.int32)


def check_parts(
    target: AbstractTarget,
    family: AbstractFamily,
    objective: AbstractObjective,
    batch_size: int | None,
) -> None:
    """Raise `ValueError` unless local latents, family, objective and batches go together.

    Args:
        target: The target.
        family: The family, bound.
        objective: The objective.
        batch_size: Rows per update; None for all.

    Raises:
        ValueError: If they do not.
    """
    names = local_names(target)
    alone = [name for name in names if not isinstance(_owner(family, name), AbstractByRow)]
    if batch_size is not None and isinstance(family, OfBatches):
        family.of_rows(target, jnp.arange(batch_size))
    elif alone and (batch_size is not None or len(alone) < len(names)):
        raise ValueError(
            f"Latent `{alone[0]}` has one value per data row, of which a batch sees its own: "
            f"give it a family by row, as `family=Factors({{{alone[0]!r}: Local()}})` or "
            f"`Amortised(...)`; got {type(_owner(family, alone[0])).__name__}."
        )
    parts = [part for part, *_ in factors_of(family)]
    for encoder in (part for part in parts if isinstance(part, Amortised)):
        encoder.check(target)
    if (draws := objective.draws) is not None:
        dim = flat_view(target)[0].size
        if len(draws[0]) != dim or not isinstance(family, AbstractGaussian):
            raise ValueError(
                f"`draws` must be positions of the {dim} unconstrained coordinates of the "
                "target, for a Gaussian family of all of them; got "
                f"{len(draws[0])} and {type(family).__name__}."
            )
        return
    if isinstance(objective, ELBO | LogVariance):
        return
    name = type(objective).__name__
    if not has_rows(family):
        if batch_size is not None:
            raise ValueError(
                f"{name} is not linear in log weights, which a batch knows with noise: use "
                f"`batch_size=None`, or local latents by row; got {batch_size}."
            )
    elif wide := [
        f for f in parts if not isinstance(f, AbstractByRow | Point) and _size(f, family)
    ]:
        raise ValueError(
            f"{name} is a bound of each data row, which needs all other latents to be points: "
            f"`Factors(..., rest=Point())`; got {type(wide[0]).__name__}."
        )


def _owner(family: AbstractFamily, name: str) -> AbstractFamily:
    while isinstance(family, Factors):
        family = family.owner(name)
    return family


def _size(part: AbstractFamily, family: AbstractFamily) -> int:
    """Return how many coordinates a factor has."""
    if not isinstance(family, Factors):
        return 1
    sizes = [sum(stop - start for start, stop in place) for place in family.places]
    return next((n for f, n in zip(family.families, sizes) if f is part), 1)
