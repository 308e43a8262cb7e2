"""Resampling schemes: weights in, indices of ancestors out.

All are unbiased: particle i has N w_i children on average. They differ in the variance
of that number. Most invert the cumulative weights at N points in [0, 1), and only the
points differ; residual resampling first hands out the integer parts of N w_i.

References:
    Douc, Cappe and Moulines (2005), doi:10.1109/ISPA.2005.195385.
    Gerber, Chopin and Whiteley (2019), Negative association, ordering and convergence of
    resampling methods, doi:10.1214/18-AOS1746.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from ...core._types import PRNGKey


class AbstractResampling(eqx.Module):
    """A resampling scheme."""

    @abc.abstractmethod
    def __call__(
        self, weights: Float[Array, " particle"], *, key: PRNGKey
    ) -> Int[Array, " particle"]:
        """Return the index of the parent of each particle.

        Args:
            weights: Normalised weights, shape `(particle,)`.
            key: For all that is random.
        """


class Systematic(AbstractResampling):
    """A grid with one random offset: floor or ceiling of N w_i children."""

    def __call__(self, weights, *, key):
        scaled = weights.shape[0] * _cumulative(weights)
        offset = jr.uniform(key, (), weights.dtype)
        return _owners(weights, jnp.ceil(scaled - offset))


class Stratified(AbstractResampling):
    """One uniform point in each of N equal intervals."""

    def __call__(self, weights, *, key):
        num = weights.shape[0]
        scaled = num * _cumulative(weights)
        points = jr.uniform(key, (num,), weights.dtype)
        full = jnp.minimum(jnp.floor(scaled), num - 1)
        inside = points[full.astype(jnp.int32)] < scaled - full
        return _owners(weights, full + inside.astype(weights.dtype))


class Multinomial(AbstractResampling):
    """Independent points; the most variable scheme, for theory and comparison."""

    def __call__(self, weights, *, key):
        # Normalised sums of N + 1 exponentials are N ordered uniforms, without a sort.
        gaps = jr.exponential(key, (weights.shape[0] + 1,), weights.dtype)
        sums = jnp.cumsum(gaps)
        return invert(weights, sums[:-1] / sums[-1])


class Residual(AbstractResampling):
    """Every particle has floor(N w_i) children; the others are drawn from what remains."""

    def __call__(self, weights, *, key):
        num = weights.shape[0]
        expected = num * weights
        children = jnp.floor(expected).astype(jnp.int32)
        certain = jnp.repeat(jnp.arange(num), children, total_repeat_length=num)
        rest = expected - children.astype(weights.dtype)
        total = jnp.sum(rest)
        # Any of these may be wanted, so the points must not be in order.
        points = jr.uniform(key, (num,), weights.dtype)
        drawn = invert(jnp.where(total > 0, rest / total, weights), points)
        is_certain = jnp.arange(num) < jnp.sum(children)
        return jnp.where(is_certain, certain, drawn.astype(certain.dtype))


class SSP(AbstractResampling):
    """Srinivasan's pairwise sampling: floor or ceiling of N w_i children, in any order.

    Two particles at a time trade the fractions of their N w_i until one is whole. Numbers of
    children are negatively associated, so that, other than of systematic resampling, the
    estimates it leaves are known to converge. The trades follow each other: slow on
    accelerators.

    References:
        Gerber, Chopin and Whiteley (2019), doi:10.1214/18-AOS1746.
    """

    def __call__(self, weights, *, key):
        num = weights.shape[0]
        expected = num * weights
        whole = jnp.floor(expected)
        rest = expected - whole

        def trade(carry, new):
            # The pair (i, j) with fractions (a, b); `new` takes the place of what is whole.
            (i, a), (j, b), (index, fraction, u) = *carry, new
            up, down = jnp.minimum(b, 1 - a), jnp.minimum(a, 1 - b)
            swap = u * (up + down) < up  # raised is i by `up`, or j by `down`: 0 on average
            i, j, a, b = jax.tree.map(
                lambda x, y: jnp.where(swap, y, x), (i, j, a, b), (j, i, b, a)
            )
            step = jnp.where(swap, down, up)
            fills = b >= 1 - a  # i is raised to 1, or until j is empty
            full = jnp.where(fills, i, num)
            keep = jnp.where(fills, j, i), jnp.where(fills, b - step, a + step)
            return (keep, (index, fraction)), full

        index = jnp.arange(num, dtype=jnp.int32)
        points = jr.uniform(key, (max(num - 1, 1),), weights.dtype)
        # The last trade brings in nothing new.
        later = jnp.append(index[2:], num)[: num - 1], jnp.append(rest[2:], 0.0)[: num - 1]
        pair = (index[0], rest[0]), (index[min(1, num - 1)], rest[min(1, num - 1)])
        (kept, _), raised = jax.lax.scan(trade, pair, (*later, points[: num - 1]))
        children = whole.astype(jnp.int32) + jnp.zeros(num, jnp.int32).at[raised].add(1)
        # What is left over is whole but for rounding.
        missing = num - jnp.sum(children, dtype=jnp.int32)
        fair = (missing > 0) & (weights[kept[0]] > 0)
        children = children.at[
            jnp.where(fair, kept[0], jnp.argmax(weights).astype(jnp.int32))
        ].add(missing)
        return jnp.repeat(index, children, total_repeat_length=num)


class Killing(AbstractResampling):
    """A particle stays with probability w_i / max w, else a random one takes its place.

    References:
        Del Moral (2004), section 11.4.3, doi:10.1007/978-1-4684-9393-1.
    """

    def __call__(self, weights, *, key):
        num = weights.shape[0]
        key_stay, key_draw = jr.split(key)
        stays = jr.uniform(key_stay, (num,), weights.dtype) * jnp.max(weights) < weights
        drawn = invert(weights, jr.uniform(key_draw, (num,), weights.dtype))
        return jnp.where(stays, jnp.arange(num, dtype=drawn.dtype), drawn)


class Repeated(AbstractResampling):
    """Few ancestors, each with the same number of copies, one beside the other.

    Attributes:
        scheme: By which ancestors are chosen.
        number: Of ancestors; it divides that of the particles.
    """

    scheme: AbstractResampling
    number: int

    def __call__(self, weights, *, key):
        key_scheme, key_first = jr.split(key)
        copies = weights.shape[0] // self.number
        # Every so many of ordered ancestors, from a random one on, are as evenly spread.
        first = jr.randint(key_first, (), 0, copies)
        chosen = first + copies * jnp.arange(self.number, dtype=first.dtype)
        return jnp.repeat(self.scheme(weights, key=key_scheme)[chosen], copies)


SCHEMES: dict[str, AbstractResampling] = {
    "systematic": Systematic(),
    "stratified": Stratified(),
    "residual": Residual(),
    "multinomial": Multinomial(),
    "ssp": SSP(),
    "killing": Killing(),
}


def _cumulative(weights: Float[Array, " particle"]) -> Float[Array, " particle"]:
    sums = jnp.cumsum(weights)
    return sums / sums[-1]


def _owners(
    weights: Float[Array, " particle"], below: Float[Array, " particle"]
) -> Int[Array, " particle"]:
    """Return the owner of each of N ordered points, given how many lie below each's end."""
    num = weights.shape[0]
    # Rounding must not leave a point to the particles of weight zero at the end.
    index = jnp.arange(num, dtype=jnp.int32)
    last = jnp.max(jnp.where(weights > 0, index, 0))
    ends = jnp.where(index >= last, num, below.astype(jnp.int32))
    passed = jnp.zeros(num + 1, jnp.int32).at[jnp.clip(ends, 0, num)].add(1)
    return jnp.minimum(jnp.cumsum(passed, dtype=jnp.int32)[:num], last)


def invert(
    weights: Float[Array, " particle"], points: Float[Array, " point"]
) -> Int[Array, " point"]:
    """Return the owner of each point in [0, 1), by the cumulative weights; of any scale."""
    ancestors = jnp.searchsorted(_cumulative(weights), points, side="right")
    # A point may round to 1: keep it off the particles of weight zero at the end.
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[0]), 0))
    return jnp.minimum(ancestors, last.astype(ancestors.dtype))
