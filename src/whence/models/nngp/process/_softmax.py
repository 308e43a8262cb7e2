"""Expectations of the softmax of independent Gaussians of one variance, by a line integral.

With G_c independent Gumbel variables, `P(max_c (f_c + G_c) < z) = exp(-sum_c exp(f_c - z))`,
so `log sum_c exp(f_c)` is the mean of that maximum less Euler's constant, and the class at
which it is attained has the probability `softmax(f)_c`. With `f_c = loc_c + s e_c` the terms
`f_c + G_c` are still independent: of the maximum, the distribution function is a product over
classes of `h(z - loc_c)` with `h(x) = E exp(-exp(s e - x))`. However many classes, what is left
are two integrals of one dimension: the trapezoidal rule in z, and for h Gauss-Hermite in e or,
where s is large and `exp(-exp(.))` a step to it, the trapezoidal rule over the Gumbel law:
`h(x) = E Phi((x - G) / s)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

# The error is below 5e-4 nats at any deviation (tests).
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(12)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_WIDE = 1.5  # deviations from which the rule over the Gumbel law is the better one
_GUMBEL = np.arange(-2.5, 13.5, 0.8)
_GUMBEL_WEIGHTS = np.exp(-_GUMBEL - np.exp(-_GUMBEL))
_LOG_GUMBEL_WEIGHTS = np.log(_GUMBEL_WEIGHTS / _GUMBEL_WEIGHTS.sum())
_GRID = np.linspace(
    -4.0, 8.0, 32
)  # in units of the maximum's own deviation; skewed to the right
_LARGEST = 60.0  # exp(exp(60)) is beyond any precision, exp(60) within all
ROWS = 128  # rows at a time: each takes 32 x 12 numbers per class


def expected_logsumexp(
    loc: Float[Array, "row class"], deviation: Float[Array, " row"]
) -> Float[Array, " row"]:
    """Return `E log sum_c exp(loc_c + deviation e_c)`, in nats, e standard normal."""
    return _by_rows(lambda m, s, wide: _mean_of_maximum(m, s, wide)[0], loc, deviation)


def log_expected_softmax(
    loc: Float[Array, "row class"], deviation: Float[Array, " row"]
) -> Float[Array, "row class"]:
    """Return `log E softmax(loc + deviation e)_c`, in nats, e standard normal.

    No smaller than about the log of the smallest number (-87 in single precision).
    """

    def one(m, s, wide):
        _, log_cdf, log_slope = _mean_of_maximum(m, s, wide)
        others = jnp.sum(log_cdf, axis=-1, keepdims=True) - log_cdf
        return jax.nn.log_softmax(jax.nn.logsumexp(log_slope + others, axis=0))

    return _by_rows(one, loc, deviation)


def _by_rows(function, loc, deviation):
    def rows(wide):
        if len(loc) <= ROWS:
            return jax.vmap(lambda m, s: function(m, s, wide))(loc, deviation)
        # Checkpoints, as a gradient would keep all nodes.
        one = jax.checkpoint(lambda row: function(*row, wide))
        return jax.lax.map(one, (loc, deviation), batch_size=ROWS)

    return jax.lax.cond(jnp.max(deviation) > _WIDE, lambda: rows(True), lambda: rows(False))


def _mean_of_maximum(loc, deviation, wide):
    """Mean of the maximum less Euler's constant; log h and log of its slope, by z and class."""
    dtype = loc.dtype
    tiny = jnp.finfo(dtype).tiny
    # The logistic function of a Gaussian is about that of its mean over this number.
    squash = jnp.sqrt(1 + 6 / np.pi**2 * deviation**2)
    centre = squash * jax.nn.logsumexp(loc / squash)
    spread = jnp.sqrt(np.pi**2 / 6 + deviation**2)
    z = jax.lax.stop_gradient(centre + spread * jnp.asarray(_GRID, dtype))
    nodes, weights = jnp.asarray(_NODES, dtype), jnp.asarray(_WEIGHTS, dtype)
    x = (loc - z[:, None])[..., None] + deviation * nodes
    rate = jnp.exp(jnp.minimum(x, _LARGEST))
    density = weights * jnp.exp(-rate)
    log_cdf = jnp.log(jnp.sum(density, axis=-1) + tiny)
    log_slope = jnp.log(jnp.sum(density * rate, axis=-1) + tiny)
    if wide:
        s = jnp.where(deviation > _WIDE, deviation, 1)
        nodes, log_weights = (jnp.asarray(a, dtype) for a in (_GUMBEL, _LOG_GUMBEL_WEIGHTS))
        t = ((z[:, None] - loc)[..., None] - nodes) / s
        above = jax.nn.logsumexp(log_weights + jax.scipy.special.log_ndtr(t), axis=-1)
        slope = jax.nn.logsumexp(log_weights - t**2 / 2, axis=-1)
        slope = slope - jnp.log(s * np.sqrt(2 * np.pi))
        log_cdf = jnp.where(deviation > _WIDE, above, log_cdf)
        log_slope = jnp.where(deviation > _WIDE, slope, log_slope)
    cdf = jnp.exp(jnp.sum(log_cdf, axis=-1))
    ends = (cdf[0] + cdf[-1]) / 2
    mean = z[-1] - (z[1] - z[0]) * (jnp.sum(cdf) - ends)
    return mean - np.euler_gamma, log_cdf, log_slope


class SoftmaxLabels(dist.Distribution):
    """A class for each row, `softmax(f)` with `f_c ~ N(loc_c, deviation^2)` independent.

    `log_prob` is the mean over f of the log probability, `E log softmax(f)_y`: what the
    evidence lower bound of a sparse Gaussian process takes, and so what is fitted. It is at
    most the log of the probability, `log_probs`, which `sample` draws from and which is what
    pointwise log likelihoods and leave-one-out use; equal where the deviation is 0.
    Rows are drawn independently of each other given `loc`.

    Args:
        loc: Means, shape `(row, class)`.
        deviation: Standard deviations, one for all classes, shape `(row,)`.
    """

    arg_constraints = {}
    pytree_data_fields = ("loc", "deviation")

    def __init__(self, loc, deviation, *, validate_args=None):
        self.loc, self.deviation = loc, deviation
        super().__init__(loc.shape[:1], (), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)  # pyright: ignore
    def support(self):
        """Integers from 0 to the number of classes less 1."""
        return constraints.integer_interval(0, self.loc.shape[-1] - 1)

    def log_prob(self, value, intermediates=None):
        """Return the mean log probability of classes, in nats."""
        places = jnp.asarray(value).astype(int)[:, None]
        chosen = jnp.take_along_axis(self.loc, places, axis=1)[:, 0]
        return chosen - expected_logsumexp(self.loc, self.deviation)

    @property
    def log_probs(self):
        """Log probabilities, f integrated out, shape `(row, class)`."""
        return log_expected_softmax(self.loc, self.deviation)

    @property
    def probs(self):
        """Probabilities, shape `(row, class)`."""
        return jnp.exp(self.log_probs)

    def sample(self, key: Any, sample_shape=()):
        """Draw f, and classes given it."""
        key_function, key_class = jax.random.split(key)
        shape = (*sample_shape, *self.loc.shape)
        white = jax.random.normal(key_function, shape, self.loc.dtype)
        values = self.loc + self.deviation[:, None] * white
        return jax.random.categorical(key_class, values, axis=-1)
