"""Sliced Wasserstein distances between two samples, in the units of the data.

With directions t on the unit sphere and W_p(t) the Wasserstein distance of the projected
samples (means over samples, not sums),

    SW_p = (mean_t W_p(t)^p)^(1/p),   max-SW_p = max_t W_p(t).

Between two samples of one law both are positive, of order n^(-1/2).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float

from ....core import AnyArray, PRNGKey, number, one_of, whole
from ....core._cache import remembering
from ....core._key import seeded
from ..._fit import descend

Directions = Float[Array, "direction feature"]


class Sliced(NamedTuple):
    """A distance in units of the data; its p-th power with the error from few directions."""

    distance: float
    power: float
    error: float


class MaxSliced(NamedTuple):
    """The largest distance along a direction that was found, a lower bound; its direction."""

    distance: float
    direction: np.ndarray


def unit(vectors: Array) -> Array:
    """Return vectors divided by their lengths."""
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, jnp.finfo(vectors.dtype).tiny))


def directions(num: int, dim: int, dtype, *, key: PRNGKey) -> Directions:
    """Return directions that are independent and uniform on the sphere."""
    return unit(jr.normal(key, (num, dim), dtype))


def wasserstein_power(a: Float[Array, "n *b"], b: Float[Array, "m *b"], p: float) -> Array:
    """Return W_p^p of samples of numbers along axis 0, of any two sizes.

    The integral of `|F^-1(u) - G^-1(u)|^p` over u; exact, and differentiable.
    """
    n, m = len(a), len(b)
    a, b = jnp.sort(a, axis=0), jnp.sort(b, axis=0)
    if n % m == 0:
        gap = a.reshape(m, n // m, *a.shape[1:]) - b[:, None]
        return jnp.mean(_power(gap, p), axis=(0, 1))
    # Both quantile functions are constant between the points of the merged grids; fractions
    # are compared as whole numbers.
    cuts = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))
    widths = np.diff(cuts) / (n * m)
    i, j = cuts[:-1] // m, cuts[:-1] // n
    weights = jnp.asarray(widths, a.dtype).reshape(-1, *(1,) * (a.ndim - 1))
    return jnp.sum(weights * _power(a[i] - b[j], p), axis=0)


def _power(gap: Array, p: float) -> Array:
    return gap**2 if p == 2 else jnp.abs(gap) ** p


def powers(x: Array, y: Array, along: Directions, p: float = 2.0) -> Array:
    """Return W_p^p of two samples `(n, feature)` and `(m, feature)` along each direction."""
    return wasserstein_power(x @ along.T, y @ along.T, p)


# -- control variate -------------------------------------------------------------
#
# Along t, Gaussian approximations of the samples differ by
#     C(t) = (t'd)^2 + t'A t + t'B t - 2 s_A(t) s_B(t),   s_A(t)^2 = t'A t,
# with d the difference of means and A, B the covariances. On the sphere the first three have
# the means |d|^2 / D, tr A / D, tr B / D. Of the product only sqrt((t'A t)(t'B t)) is left,
# whose mean is taken over many more directions than are sorted along (they cost no sort),
# and there again minus its regression on t'A t and t'B t, the means of which are known. For
# Gaussian samples W_2^2(t) - C(t) is sampling noise alone; for isotropic ones C is constant.


def _forms(x: Array, y: Array, along: Array) -> Array:
    shift = (along @ (x.mean(0) - y.mean(0))) ** 2
    return jnp.stack([shift, jnp.var(x @ along.T, axis=0), jnp.var(y @ along.T, axis=0)])


def _controlled(x: Array, y: Array, along: Array, extra: Array) -> tuple[Array, Array]:
    shift, first, second = _forms(x, y, along)
    rest = powers(x, y, along) - (shift + first + second - 2 * jnp.sqrt(first * second))
    apart = jnp.sum((x.mean(0) - y.mean(0)) ** 2)
    means = jnp.stack([apart, jnp.var(x, 0).sum(), jnp.var(y, 0).sum()]) / x.shape[1]
    squares = _forms(x, y, extra)[1:]
    product = jnp.sqrt(squares[0] * squares[1])
    features = (squares - means[1:, None]) / jnp.maximum(
        means[1:].sum(), jnp.finfo(x.dtype).tiny
    )
    gram = features @ features.T + 1e-6 * jnp.eye(2, dtype=x.dtype) * len(extra)
    left = product - jnp.linalg.solve(gram, features @ (product - product.mean())) @ features
    variance = rest.var(ddof=1) / len(along) + 4 * left.var(ddof=1) / len(extra)
    return rest.mean() + means.sum() - 2 * left.mean(), jnp.sqrt(variance)


EXTRA = 20  # directions without a sort for each with one


@remembering
def _sliced(x, y, key, num: int, p: float, control: bool):
    key_few, key_more = jr.split(key)
    along = directions(num, x.shape[1], x.dtype, key=key_few)
    if control:
        extra = directions(EXTRA * num, x.shape[1], x.dtype, key=key_more)
        return _controlled(x, y, along, extra)
    each = powers(x, y, along, p)
    return each.mean(), each.std(ddof=1) / jnp.sqrt(jnp.asarray(num, x.dtype))


@seeded
def sliced_wasserstein(
    x: AnyArray,
    y: AnyArray,
    *,
    key: PRNGKey,
    projections: int = 500,
    p: float | int = 2,
    control: str = "gaussian",
) -> Sliced:
    """Estimate the sliced Wasserstein distance of two samples.

    Args:
        x: Sample, `(n, ...)`; further axes are flattened.
        y: Sample, `(m, ...)`.
        key: A typed key.
        projections: Directions along which samples are sorted, at least 2.
        p: Order, at least 1.
        control: For p = 2, `"gaussian"` subtracts the distance between Gaussian
            approximations along each direction, whose mean is known almost without error:
            the directions' error all but vanishes for samples that are nearly Gaussian.

    Returns:
        The distance with the standard error of its p-th power. That is the error of
        directions only; the bias of finite samples stays.

    References:
        Bonneel, Rabin, Peyré and Pfister (2015), doi:10.1007/s10851-014-0506-3.
        Nguyen and Ho (2023), arXiv:2305.00402 (for the idea; the control differs).
    """
    x, y = check_samples(x, y)
    num, p = whole("projections", least=2)(projections), number("p", least=1)(p)
    controlled = one_of("control", ("none", "gaussian"))(control) == "gaussian" and p == 2
    power, error = map(float, _sliced(x, y, key, num, p, controlled))
    return Sliced(max(power, 0.0) ** (1 / p), power, error)


@remembering
def _max_sliced(x, y, key, starts: int, steps: int):
    dim = x.shape[1]
    along = directions(8 * starts, dim, x.dtype, key=key)
    shift = unit((x.mean(0) - y.mean(0))[None])
    spread = jnp.linalg.eigh(jnp.cov(x.T) - jnp.cov(y.T))[1].T if dim > 1 else shift
    some = jnp.concatenate([shift, spread[:1], spread[-1:], along])
    return ascend(lambda t: powers(x, y, t), some, starts, steps)


def ascend(
    objective: Callable[[Array], Array], along: Directions, starts: int, steps: int
) -> tuple[Array, Array]:
    """Maximise a function from directions to a number for each; return the best of both.

    From the `starts` best of some directions by steps of Adam and returns to the sphere.
    """
    best = jnp.argsort(-objective(along))[:starts]
    rule = optax.adam(optax.cosine_decay_schedule(0.1, steps))
    loss = lambda t: (-objective(unit(t)).sum(), None)

    def step(carry, _):
        t, state, top, where = carry
        (t, state), _ = descend(rule, loss, t, state)
        t = unit(t)
        value = objective(t)
        where = jnp.where((value > top)[:, None], t, where)
        return (t, state, jnp.maximum(value, top), where), None

    begin = (t := along[best], rule.init(t), objective(t), t)
    (_, _, top, where), _ = jax.lax.scan(step, begin, None, length=steps)
    return top.max(), where[jnp.argmax(top)]


@seeded
def max_sliced_wasserstein(
    x: AnyArray, y: AnyArray, *, key: PRNGKey, starts: int = 8, steps: int = 200
) -> MaxSliced:
    """Search for the direction along which W_2 of two samples is largest.

    Starts are the difference of the means, the directions in which variances differ most,
    and the best of random ones.

    Args:
        x: Sample, `(n, ...)`; further axes are flattened.
        y: Sample, `(m, ...)`.
        key: A typed key.
        starts: Directions that are improved.
        steps: Of gradient ascent for each.

    References:
        Deshpande et al. (2019), Max-sliced Wasserstein distance, arXiv:1904.05877.
    """
    x, y = check_samples(x, y)
    starts, steps = whole("starts", least=1)(starts), whole("steps", least=1)(steps)
    power, along = _max_sliced(x, y, key, starts, steps)
    return MaxSliced(float(power) ** 0.5, np.asarray(along))


def check_samples(x: AnyArray, y: AnyArray) -> tuple[Array, Array]:
    """Return two samples as matrices of one type."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    for name, sample in {"x": x, "y": y}.items():
        if sample.ndim < 2 or len(sample) == 0 or not np.isfinite(np.asarray(sample)).all():
            raise ValueError(f"`{name}` must be finite, in rows; got shape {sample.shape}.")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"`x` and `y` must have rows of one shape; got {x.shape[1:]} and {y.shape[1:]}."
        )
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return x.reshape(len(x), -1).astype(dtype), y.reshape(len(y), -1).astype(dtype)
