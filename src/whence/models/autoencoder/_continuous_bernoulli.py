"""The continuous Bernoulli law: `p(x) proportional to exp(l x)` for x between 0 and 1.

With the logit l, `log p(x) = l x - A(l)`, `A(l) = log((exp(l) - 1) / l) = l / 2 + log(sinh(y) /
y)` for `y = l / 2`. Near 0 both forms lose all digits, in the gradient first; there the series
of `log(sinh(y) / y)` is used.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints

# Of log(sinh(y) / y) in y**2; the next terms are below 1e-14 for y < 1/4.
SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775)
SMALL = 0.25


def log_partition(logits: Array) -> Array:
    """Return A(l), in nats, with derivatives that are exact at 0 too."""
    y = jnp.abs(logits) / 2
    near, far = jnp.where(y < SMALL, logits / 2, 0), jnp.where(y < SMALL, 1, y)
    series = jnp.polyval(jnp.asarray((*SERIES[::-1], 0), y.dtype), near**2)
    # log(sinh(y) / y) = y + log(1 - exp(-2 y)) - log(2 y)
    direct = far + jnp.log1p(-jnp.exp(-2 * far)) - jnp.log(2 * far)
    return logits / 2 + jnp.where(y < SMALL, series, direct)


_mean = jax.grad(log_partition)


class ContinuousBernoulliDistribution(dist.Distribution):
    """The continuous Bernoulli law of numbers between 0 and 1, by its logit.

    References:
        Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli: fixing a pervasive error
        in variational autoencoders, arXiv:1907.06845.
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval  # pyright: ignore[reportAssignmentType]
    reparametrized_params = ["logits"]

    def __init__(self, logits, *, validate_args=None):
        """Keep the logits, of any shape."""
        self.logits: Array = jnp.asarray(logits)
        super().__init__(jnp.shape(self.logits), validate_args=validate_args)

    def log_prob(self, value):
        """Return the log density, in nats."""
        return self.logits * value - log_partition(self.logits)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()):
        """Draw by the inverse of the distribution function."""
        u = jr.uniform(key, (*sample_shape, *self.batch_shape), self.logits.dtype)
        size = jnp.abs(self.logits)
        small = size < 1e-3
        far = jnp.where(small, 1, size)
        direct = 1 + jnp.log(u + (1 - u) * jnp.exp(-far)) / far
        drawn = jnp.where(small, u + size * u * (1 - u) / 2, direct)
        drawn = jnp.clip(drawn, 0, 1)
        return jnp.where(self.logits < 0, 1 - drawn, drawn)

    @property
    def mean(self):
        """The mean A'(l), which is not `sigmoid(logits)`."""
        return jnp.vectorize(_mean)(self.logits)

    @property
    def variance(self):
        """The variance, A''(l)."""
        return jnp.vectorize(jax.grad(_mean))(self.logits)
