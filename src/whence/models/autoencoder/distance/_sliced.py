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

from ....core._cache import remembering
from ....core._convert import number, one_of, whole
from ....core._key import seeded
from ....core._types import AnyArray, PRNGKey

Directions = Float[Array, "direction feature"]
CONTROLS = ("none", "gaussian")


class Sliced(NamedTuple):
    """A sliced distance with its Monte Carlo error.

    Attributes:
        distance: In units of the data.
        power: Its p-th power, of which the estimate is the mean over directions.
        error: Standard error of `power` from the choice of directions.
    """

    distance: float
    power: float
    error: float


class MaxSliced(NamedTuple):
    """A direction along which two samples differ most, as far as the search found.

    Attributes:
        distance: W_p along it: a lower bound of the largest.
        direction: Of unit length.
    """

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
    if n == m:
        return jnp.mean(_power(a - b, p), axis=0)
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
    """Return W_p^p of two samples along each direction.

    Args:
        x: Sample, `(n, feature)`.
        y: Sample, `(m, feature)`.
        along: Directions.
        p: Order.
    """
    return wasserstein_power(x @ along.T, y @ along.T, p)


def root(power: Array, p: float) -> Array:
    """Return the p-th root, with a finite gradient at 0."""
    tiny = jnp.finfo(power.dtype).eps ** 2
    return jnp.maximum(power, tiny) ** (1 / p)


# -- control variate -------------------------------------------------------------
#
# Along t, Gaussian approximations of the samples differ by
#     C(t) = (t'd)^2 + t'A t + t'B t - 2 s_A(t) s_B(t),   s_A(t)^2 = t'A t,
# with d the difference of means and A, B the covariances. On the sphere the first three have
# the means |d|^2 / D, tr A / D, tr B / D. Of the product only sqrt((t'A t)(t'B t)) is left,
# whose mean is taken over many more directions than are sorted along (they cost no sort),
# and there again minus its regression on t'A t and t'B t, the means of which are known. For
# Gaussian samples W_2^2(t) - C(t) is sampling noise alone; for isotropic ones C is constant.


class _Forms(NamedTuple):
    shift: Array  # (t'd)^2
    first: Array  # t'A t
    second: Array  # t'B t


def _forms(x: Array, y: Array, along: Array) -> _Forms:
    shift = (along @ (x.mean(0) - y.mean(0))) ** 2
    first, second = jnp.var(x @ along.T, axis=0), jnp.var(y @ along.T, axis=0)
    return _Forms(shift, first, second)


def _controlled(x: Array, y: Array, along: Array, extra: Array) -> tuple[Array, Array]:
    forms = _forms(x, y, along)
    few = _gaussian(forms)
    rest = powers(x, y, along) - few
    more = _forms(x, y, extra)
    dim = x.shape[1]
    first, second = jnp.sum(jnp.var(x, 0)) / dim, jnp.sum(jnp.var(y, 0)) / dim
    known = jnp.sum((x.mean(0) - y.mean(0)) ** 2) / dim + first + second
    product = jnp.sqrt(more.first * more.second)
    features = jnp.stack([more.first - first, more.second - second], axis=1)
    features = features / jnp.maximum(first + second, jnp.finfo(x.dtype).tiny)
    gram = features.T @ features + 1e-6 * jnp.eye(2, dtype=x.dtype) * len(extra)
    slope = jnp.linalg.solve(gram, features.T @ (product - product.mean()))
    left = product - features @ slope
    mean = rest.mean() + known - 2 * left.mean()
    variance = rest.var(ddof=1) / len(along) + 4 * left.var(ddof=1) / len(extra)
    return mean, jnp.sqrt(variance)


def _gaussian(forms: _Forms) -> Array:
    return forms.shift + forms.first + forms.second - 2 * jnp.sqrt(forms.first * forms.second)


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

    Raises:
        ValueError: If samples differ in their features, or a number is out of bounds.

    References:
        Bonneel, Rabin, Peyré and Pfister (2015), doi:10.1007/s10851-014-0506-3.
        Nguyen and Ho (2023), Sliced Wasserstein estimation with control variates,
        arXiv:2305.00402 (for the idea; the control differs).
    """
    x, y = check_samples(x, y)
    num, p = whole("projections", least=2)(projections), number("p", least=1)(p)
    controlled = one_of("control", CONTROLS)(control) == "gaussian" and p == 2
    power, error = map(float, _sliced(x, y, key, num, p, controlled))
    return Sliced(max(power, 0.0) ** (1 / p), power, error)


@remembering
def _max_sliced(x, y, key, starts: int, steps: int, p: float):
    dim = x.shape[1]
    along = directions(8 * starts, dim, x.dtype, key=key)
    shift = unit((x.mean(0) - y.mean(0))[None])
    spread = jnp.linalg.eigh(jnp.cov(x.T) - jnp.cov(y.T))[1].T if dim > 1 else shift
    some = jnp.concatenate([shift, spread[:1], spread[-1:], along])
    return ascend(lambda t: powers(x, y, t, p), some, starts, steps)


def ascend(
    objective: Callable[[Array], Array], along: Directions, starts: int, steps: int
) -> tuple[Array, Array]:
    """Maximise a function of a direction from the best of some, and return both.

    Args:
        objective: From directions to a number for each.
        along: Directions to choose from.
        starts: How many of them to start from.
        steps: Of Adam, each followed by a return to the sphere.
    """
    best = jnp.argsort(-objective(along))[:starts]
    rule = optax.adam(optax.cosine_decay_schedule(0.1, steps))
    gradient = jax.grad(lambda t: -objective(unit(t)).sum())

    def step(carry, _):
        t, state, top, where = carry
        update, state = rule.update(gradient(t), state)
        t = unit(t + update)
        value = objective(t)
        where = jnp.where((value > top)[:, None], t, where)
        return (t, state, jnp.maximum(value, top), where), None

    t = along[best]
    carry = (t, rule.init(t), objective(t), t)
    (_, _, top, where), _ = jax.lax.scan(step, carry, None, length=steps)
    i = jnp.argmax(top)
    return top[i], where[i]


@seeded
def max_sliced_wasserstein(
    x: AnyArray,
    y: AnyArray,
    *,
    key: PRNGKey,
    starts: int = 8,
    steps: int = 200,
    p: float | int = 2,
) -> MaxSliced:
    """Search for the direction along which two samples differ most.

    Starts are the difference of the means, the directions in which variances differ most,
    and the best of random ones.

    Args:
        x: Sample, `(n, ...)`; further axes are flattened.
        y: Sample, `(m, ...)`.
        key: A typed key.
        starts: Directions that are improved.
        steps: Of gradient ascent for each.
        p: Order, at least 1.

    References:
        Deshpande et al. (2019), Max-sliced Wasserstein distance and its use for GANs,
        arXiv:1904.05877.
    """
    x, y = check_samples(x, y)
    starts, steps = whole("starts", least=1)(starts), whole("steps", least=1)(steps)
    p = number("p", least=1)(p)
    power, along = _max_sliced(x, y, key, starts, steps, p)
    return MaxSliced(float(power) ** (1 / p), np.asarray(along))


def check_samples(x: AnyArray, y: AnyArray) -> tuple[Array, Array]:
    """Return two samples as matrices of one type."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    for name, sample in {"x": x, "y": y}.items():
        if sample.ndim < 2 or len(sample) == 0:
            raise ValueError(
                f"`{name}` must be a sample, rows along axis 0; got shape {sample.shape}."
            )
        if not np.isfinite(np.asarray(sample)).all():
            raise ValueError(f"`{name}` must be finite; it is not.")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"`x` and `y` must have rows of one shape; got {x.shape[1:]} and {y.shape[1:]}."
        )
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return x.reshape(len(x), -1).astype(dtype), y.reshape(len(y), -1).astype(dtype)
