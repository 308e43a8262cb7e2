"""Less noise of batches, by the tangent of the log density at a point.

A batch of `b` of `N` rows tells the slope of the log density, in units of the posterior's
standard deviations, with an error of `(N / b)^(1/2)`: 30 for 1,000 of 1e6 rows, which leaves
10,000 updates a tenth of a standard deviation or more from where they should be. What it
tells of the difference to an anchor, where all rows were looked at, is better known. So the
estimate by a batch is corrected by a tangent,

    log p(x)  ~  log p_b(x) + (log p - log p_b)(c) + (x - c)' grad (log p - log p_b)(c),

which is unbiased for any anchor `c`. Its gradient is that of stochastic variance reduction.
Far from the anchor, or where the log density bends, it may be noisier than without; so some
batches are looked at, and the correction is made while it helps.

References:
    Johnson, Zhang (2013), "Accelerating stochastic gradient descent using predictive variance
    reduction", NIPS. Miller, Foti, D'Amour, Adams (2017), "Reducing reparameterization gradient
    variance", NIPS.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from ...core._batches import sum_in_batches
from ...core._data import log_density_estimate
from ...core._family import OfBatches
from ...core._flat import flat_view
from ...core._stream import stream_of
from ...core._target import AbstractTarget, local_names
from ...core._types import PRNGKey, Scalar
from ._family import AbstractFamily

LOOK = 100  # updates between looks at whether it helps
BATCHES, PROBES = 8, 16  # that are looked at; draws that measure the family's spread
# Of the likelihoods of rows that updates evaluate, for anchors; and their number in a fit,
# however large their part, which with fewer of them comes too late to end near the optimum.
SHARE, FEWEST = 0.1, 10

Vector = Float[Array, " dim"]


class Anchor(eqx.Module):
    """A point at which all rows were looked at.

    Attributes:
        point: Flat position.
        value: Log density there, in nats.
        slope: Its gradient.
        helps: Whether the correction makes less noise.
    """

    point: Vector
    value: Scalar
    slope: Vector
    helps: Bool[Array, ""]

    def correction(
        self, log_density: Callable[[Vector], Scalar], positions: Float[Array, "draw dim"]
    ) -> Float[Array, " draw"]:
        """Return what is added to log densities by a batch, in nats.

        Args:
            log_density: By the batch, of a flat position.
            positions: Flat ones.
        """
        value, slope = jax.value_and_grad(log_density)(self.point)
        excess = jnp.where(self.helps, self.slope - slope, 0)
        level = jnp.where(self.helps, self.value - value, 0)
        return level + (positions - self.point[None]) @ excess


def start_anchor(engine: Any, target: AbstractTarget) -> Anchor | None:
    """Return an anchor that is not used yet; None where there is to be none."""
    # Data that go on coming, for which an own optimiser may be, are never known by all rows.
    if engine.batch_size is None or engine.optimizer is not None or local_names(target):
        return None
    if stream_of(target) is not None or isinstance(engine.family, OfBatches):
        return None
    like = flat_view(target)[0]
    return Anchor(like, jnp.zeros((), like.dtype), like, jnp.zeros((), bool))


def renewed(
    anchor: Anchor | None,
    target: Any,
    family: AbstractFamily,
    params: Any,
    index: Int[Array, ""],
    sizes: tuple[int, int, int, int],
    *,
    key: PRNGKey,
) -> Anchor | None:
    """Return the anchor for a block of updates: now and then another, or one found to help.

    Args:
        anchor: Of the block before.
        target: With data rows.
        family: The family, bound.
        params: Its parameters.
        index: Number of the block.
        sizes: Updates in the fit and in a block, draws in an update, rows in a batch.
        key: For batches that are looked at.
    """
    if anchor is None:
        return None
    form, (steps, block, samples, batch) = flat_view(target)[1], sizes
    every = -(-LOOK // block)
    affordable = SHARE * every * block * samples * batch
    most = steps // (FEWEST * every * block)
    looks = max(1, min(round(target.num_data / affordable), most))
    keep = lambda: anchor

    def look():
        centre = _centre(family, params, anchor.point)
        move = lambda: _at_all_rows(target, form, centre[0], samples * batch)
        new = jax.lax.cond(index % (every * looks) == 0, move, keep)
        helps = _helps(new, target, form, centre, batch, key)
        return Anchor(new.point, new.value, new.slope, helps)

    return jax.lax.cond((index > 0) & (index % every == 0), look, keep)


def _centre(family: AbstractFamily, params: Any, like: Vector) -> tuple[Vector, Vector, Vector]:
    """Return mean and standard deviations of some draws, and one of them."""
    noise = family.noise(like, PROBES, key=jr.key(0))
    draws = jax.vmap(lambda n: family.transform(params, n))(noise)
    spread = draws.std(0)
    return draws.mean(0), jnp.where(spread > 0, spread, 1), draws[0]  # a point has none


def _at_all_rows(target: Any, form: Callable, point: Vector, size: int) -> Anchor:
    """Return an anchor, with as many rows at a time as an update has."""
    number = target.num_data

    def terms(rows, inside):
        part = lambda x: jnp.where(inside, target.log_likelihood(form(x), rows), 0).sum()
        return jax.value_and_grad(part)(point)

    start = jax.value_and_grad(lambda x: target.log_prior(form(x)))(point)
    value, slope = sum_in_batches(terms, number, min(size, number), start)
    return Anchor(point, value, slope, jnp.zeros((), bool))


def _helps(anchor: Anchor, target: Any, form: Callable, centre: Any, batch: int, key: PRNGKey):
    """Whether slopes of batches at a draw vary less about those at the anchor."""
    _, spread, draw = centre
    rows = jr.randint(key, (BATCHES, batch), 0, target.num_data, jnp.int32)
    slope = jax.grad(lambda x, r: log_density_estimate(target, form(x), r))
    here, there = (
        jax.vmap(lambda r, x=x: slope(x, r))(rows) * spread[None] for x in (draw, anchor.point)
    )
    noise = lambda x: jnp.sum(jnp.var(x, axis=0))
    known = jnp.isfinite(anchor.value) & jnp.all(jnp.isfinite(anchor.slope))
    return known & (noise(here - there) < noise(here))
