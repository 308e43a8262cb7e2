"""A density of a scale in pieces that are smooth and have one peak each, in log v.

One rule integrates such a piece, whatever its ends (`_quadrature`); a jump, a kink or a
second peak inside of a piece would cost it most of its digits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int
from numpyro.distributions import constraints

from ....core._types import Scalar


class Pieces(NamedTuple):
    """Densities of a scale v, and the stretches of log v on which each is integrated."""

    # of a scale; the densities of all components, which add up to the law
    log_densities: Callable[[Array], Float[Array, " component"]]
    component: Int[Array, " piece"]  # which of them a piece belongs to
    low: Float[Array, " piece"]  # where a piece begins, in log v
    high: Float[Array, " piece"]  # where it ends


def one_piece(log_density: Callable[[Array], Array]) -> Pieces:
    """Return a density that is smooth on all positive numbers, with one peak in log v."""
    ends = jnp.full((1,), jnp.inf)
    return Pieces(lambda v: log_density(v)[None], jnp.zeros((1,), int), -ends, ends)


def pieces_of(distribution: Any) -> Pieces:
    """Return the pieces of a numpyro distribution of one number.

    Components of mixtures are pieces of their own, and each is cut where it, or what it is a
    transformation of, has an edge or a kink.
    """
    weighted = _components(distribution)
    component, low, high = [], [], []
    for number, (_, part, entry) in enumerate(weighted):
        first, last, kinks = (jnp.asarray(v) for v in _places(part))
        cuts = jnp.stack([v.reshape(-1)[entry % v.size] for v in (first, *kinks, last)])
        cuts = jnp.log(jnp.maximum(cuts, 0))
        inner = jnp.sort(jnp.clip(cuts, cuts[0], cuts[-1]))
        low.append(inner[:-1])
        high.append(inner[1:])
        component += [number] * (len(cuts) - 1)

    def log_densities(scale: Array) -> Array:
        found = []
        for log_weight, part, entry in weighted:
            value = inside(part, scale).reshape(-1)
            found.append(log_weight + value[entry % value.size])
        return jnp.stack(found)

    return Pieces(
        log_densities, jnp.asarray(component), jnp.concatenate(low), jnp.concatenate(high)
    )


def _components(distribution: Any) -> list[tuple[Any, Any, int]]:
    """Return log weights, distributions, and which of their batch is meant."""
    if not isinstance(distribution, dist.MixtureSameFamily | dist.MixtureGeneral):
        return [(0.0, distribution, 0)]
    logits: Any = distribution.mixing_distribution.logits
    weights = jax.nn.log_softmax(logits).reshape(-1)
    count = distribution.mixture_size
    if isinstance(distribution, dist.MixtureSameFamily):
        part = distribution.component_distribution
        return [(weights[i], part, i) for i in range(count)]
    parts = distribution.component_distributions
    return [
        (weights[i] + weight, part, entry)
        for i in range(count)
        for weight, part, entry in _components(parts[i])
    ]


def inside(distribution: Any, value: Array) -> Array:
    """Return the log density, and minus infinity off the support.

    numpyro's own goes on beyond the support of a `Uniform`, also in mixtures and below
    transformations.
    """
    if isinstance(distribution, dist.MixtureSameFamily | dist.MixtureGeneral):
        parts = [
            weight + inside(part, value).reshape(-1)[entry]
            for weight, part, entry in _components(distribution)
        ]
        return jax.nn.logsumexp(jnp.stack(parts), axis=0)
    return jnp.where(holds(distribution, value), distribution.log_prob(value), -jnp.inf)


def holds(distribution: Any, value: Array) -> Array:
    """Return whether a number is on the support, also of what was transformed."""
    if isinstance(distribution, dist.MixtureSameFamily | dist.MixtureGeneral):
        each = [holds(d, value).reshape(-1)[i] for _, d, i in _components(distribution)]
        return jnp.any(jnp.stack(each), axis=0)
    there = distribution.support(value)
    if isinstance(distribution, dist.TransformedDistribution):
        before: Any = value
        for transform in reversed(distribution.transforms):
            before = transform._inverse(before)
        there = there & holds(distribution.base_dist, before)
    return there


def _places(distribution: Any) -> tuple[Any, Any, list[Any]]:
    """Return where the support begins and ends, and where the density has kinks."""
    low, high = _ends(distribution.support)
    base = getattr(distribution, "base_dist", None)
    kinks = []
    if isinstance(distribution, dist.Laplace | dist.AsymmetricLaplace):
        kinks = [distribution.loc]
    elif isinstance(distribution, dist.TransformedDistribution):
        first, last, inner = _places(base)
        below = [first, last, *inner]
        for transform in distribution.transforms:
            below = [transform(v) for v in below]
        first, last = jnp.minimum(*below[:2]), jnp.maximum(*below[:2])
        low, high, kinks = jnp.maximum(low, first), jnp.minimum(high, last), below[2:]
    elif base is not None:
        kinks = _places(base)[2]
    return low, high, kinks


def _ends(support: Any) -> tuple[Any, Any]:
    low = getattr(support, "lower_bound", -jnp.inf)
    high = getattr(support, "upper_bound", jnp.inf)
    if support in (constraints.positive, constraints.nonnegative):
        low = 0.0
    return low, high


def tail_order(log_density: Callable[[Array], Array], centre: Scalar) -> Scalar:
    """Return the order below which moments exist, from the density far above its centre.

    There the density of log v falls like `exp(-order log v)` if v has a heavy tail. If it
    falls ever faster (or v is bounded), all moments exist; if ever slower, none.
    """
    double = jnp.finfo(centre.dtype).eps < 1e-10
    step, digits = (60.0, 2.0**20) if double else (10.0, 2.0**8)
    far = centre + step * jnp.arange(1, 4).astype(centre.dtype)
    values = jax.vmap(log_density)(jnp.exp(far)) + far
    first, second = -jnp.diff(values) / step
    # Rounded, as whether a moment exists is asked of the whole and half numbers.
    order = jnp.round(second * digits) / digits
    falling = second > 1.1 * first + 1 / digits
    everything = ~jnp.isfinite(values[-1]) | falling
    order = jnp.where(everything, jnp.inf, jnp.where(second < 0.9 * first, 0, order))
    return jnp.maximum(order, 0)
