"""The variance of a gradient of the energy, and the most that it can be.

A draw is `z = m + C u`, `u` of independent, symmetric numbers of variance 1 and fourth moment
`k` (3 if normal), with `C` a lower triangle or a diagonal. Of one draw, the gradient of the
energy `E log p(z)` is `g` by location and `g u'` in the entries that `C` has, with `g` the
gradient of `log p` at `z`. Let that change by no more than `L` times the distance, and be `v`
at `m`. Then `|g| <= |v| + L |C u|`, and the squared length of the estimate is at most
`w |g|^2`, where `w = 1 + |u|^2` for a triangle and `1 + max u_i^2` for a diagonal. By the
inequality of Minkowski its mean, and so the variance of the estimate, is at most

    (a^(1/2) |v| + b^(1/2) L |C|)^2,    a >= E w,    b |C|^2 >= E w |C u|^2,

    triangle:  a = d + 1,             b = d + k,
    diagonal:  a = 1 + (k d)^(1/2),   b = 1 + k d^(1/2),

the last because `max u_i^2 <= (sum u_i^4)^(1/2)`: a triangle's noise grows with the dimension,
a diagonal's with its root. It is a bound of gradients by the entries of `C` themselves, with
the entropy in closed form and all data. Where an entry is a function, of slope at most 1, of
what is stepped (softplus), its gradient is no longer.

References:
    Domke (2019), Provable gradient variance guarantees for black-box variational inference,
    arXiv:1906.08241.
    Kim, Wu, Oh, Gardner (2023), Practical and matching gradient variance bounds for black-box
    variational Bayesian inference, arXiv:2303.10472.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ...core._batches import in_batches
from ...core._cache import remembering
from ...core._flat import flat_view
from ._estimator import ClosedFormEntropy
from ._family import FullRank, MeanField
from ._update import Proximal

PLACES, ITERATIONS = 200, 10  # location and draws; of a power iteration for the curvature there
FOURTH = 3.0  # moment of a normal number


def is_bounded(engine: Any, family: Any) -> bool:
    """Whether a fit follows gradients that the bound is about."""
    plain = engine.update is None and isinstance(engine.estimator, ClosedFormEntropy)
    plain |= isinstance(engine.update, Proximal)
    return plain and engine.batch_size is None and isinstance(family, MeanField | FullRank)


def variance_and_bound(family: Any, params: Any, target: Any, key: Any) -> tuple[float, float]:
    """Return the variance of the gradient of one draw, and its bound by what was found there.

    The curvature `L` is the largest that a power iteration finds at the draws.
    """
    found = _looked(family, params, target, key)
    gradients, noise, curvature = (np.asarray(x, np.float64) for x in found)
    described, dense = family.describe(params), isinstance(family, FullRank)
    root = np.asarray(described["scale_tril" if dense else "scale"])
    slope, spread = np.linalg.norm(gradients[0]), np.linalg.norm(root)
    most = largest_variance(slope, curvature.max(), spread, noise.shape[1], dense)
    return float(variance(gradients[1:], noise[1:], dense)), float(most)


def variance(gradients: np.ndarray, noise: np.ndarray, dense: bool) -> float:
    """Return the variance of gradients by location and scale, summed over entries.

    Args:
        gradients: Of the log density at draws, `(draw, dim)`.
        noise: Of the draws, `(draw, dim)`.
        dense: Whether the scale is a lower triangle.
    """
    number, squares = len(noise), noise**2
    entries = np.cumsum(squares, axis=1) if dense else squares
    second = np.sum(gradients**2 * (1 + entries)) / number
    means = np.tril(gradients.T @ noise) if dense else (gradients * noise).sum(axis=0)
    first = np.sum(gradients.mean(axis=0) ** 2) + np.sum((means / number) ** 2)
    return number / (number - 1) * (second - first)


def largest_variance(
    slope: float, curvature: float, spread: float, dim: int, dense: bool
) -> float:
    """Return the bound.

    Args:
        slope: `|v|`.
        curvature: `L`.
        spread: `|C|`, the root of the sum of squares.
        dim: `d`.
        dense: Whether `C` is a lower triangle.
    """
    a, b = (
        (dim + 1, dim + FOURTH) if dense else (1 + (FOURTH * dim) ** 0.5, 1 + FOURTH * dim**0.5)
    )
    return (a**0.5 * slope + b**0.5 * curvature * spread) ** 2


@remembering
def _looked(family, params, target, key):
    """Gradients, noise and largest absolute curvature at the location and at draws."""
    like, form = flat_view(target)
    key_noise, key_start = jr.split(key)
    noise = family.noise(like, PLACES, key=key_noise).at[0].set(0)
    gradient = jax.grad(lambda x: target.log_density(form(x)))

    def one(pair):
        x, start = pair

        def step(_, carry):
            direction, _, _ = carry
            slope, turned = jax.jvp(gradient, (x,), (direction,))
            size = jnp.linalg.norm(turned)
            return jnp.where(size > 0, turned / size, direction), slope, size

        begin = start / jnp.linalg.norm(start), jnp.zeros_like(x), jnp.zeros((), x.dtype)
        return jax.lax.fori_loop(0, ITERATIONS, step, begin)[1:]

    positions = jax.vmap(lambda n: family.transform(params, n))(noise)
    starts = jr.normal(key_start, positions.shape, positions.dtype)
    slopes, sizes = in_batches(one, (positions, starts), 100)
    return slopes, noise, sizes
