"""Values of a process at some inputs, before any observation, as one distribution."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from numpyro.distributions import constraints

from .._precision import NATS, is_single, lost_nats, rounding_of, weights_of


class Joint(dist.Distribution):
    """`N(0, v L L')` for each output, all of one scale v, mixed over the law of v.

    Its density is exact for every law, however many rows: laws without a closed form are
    integrated anew around the posterior of v for the value in question.

    Args:
        law: Of the scale, an `AbstractLaw`.
        scale_tril: Lower triangular factor L, shape `(rows, rows)`.
        penalty: Added to the log density: minus infinity where there is no factor, else 0.
        outputs: Number of outputs; None for values of shape `(rows,)`.
    """

    arg_constraints = {}
    pytree_data_fields = ("law", "scale_tril", "penalty")
    pytree_aux_fields = ("outputs",)

    def __init__(
        self, law, scale_tril, penalty, outputs: int | None = None, *, validate_args=None
    ):
        self.law, self.scale_tril, self.penalty = law, scale_tril, penalty
        self.outputs = outputs
        rows = scale_tril.shape[-1]
        event = (rows,) if outputs is None else (rows, outputs)
        super().__init__((), event, validate_args=validate_args)

    @property
    def support(self):
        """All real values."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value, intermediates=None):
        """Return the joint log density."""
        value = jnp.asarray(value)
        batch = value.shape[: value.ndim - len(self.event_shape)]
        if not batch:
            return self._log_prob(value)
        flat = value.reshape(-1, *self.event_shape)
        return jax.vmap(self._log_prob)(flat).reshape(batch)

    def _log_prob(self, value):
        tril = self.scale_tril
        columns = value.reshape(len(tril), -1).astype(tril.dtype)
        white = solve_triangular(tril, columns, lower=True)
        log_det = 2 * columns.shape[1] * jnp.sum(jnp.log(jnp.diagonal(tril)))
        integral = self.law.log_integral(white.size, jnp.sum(white**2))
        density = integral - (white.size * jnp.log(2 * jnp.pi) + log_det) / 2
        return density + self.penalty + self._imprecise(white)

    def _imprecise(self, white):
        """Return minus infinity where rounding would move the density, else 0."""
        tril = jax.lax.stop_gradient(self.scale_tril)
        if not is_single(tril.dtype):
            return 0.0
        white = jax.lax.stop_gradient(white)
        inverse = white.size / jnp.sum(white**2)
        lost = lost_nats(rounding_of(tril), weights_of(tril, white), inverse)
        return jnp.where(lost <= NATS, 0.0, -jnp.inf).astype(tril.dtype)

    def sample(self, key: Any, sample_shape=()):
        """Draw values; NaN where there is no factor.

        Raises:
            ValueError: If the law is improper.
        """
        key_scale, key_normal = jr.split(key)
        dtype = self.scale_tril.dtype
        scale = self._before().sample(key_scale, sample_shape)
        rows = len(self.scale_tril)
        white = jr.normal(key_normal, (*sample_shape, rows, self.outputs or 1), dtype)
        deviation = jnp.sqrt(scale)[..., None, None] + jnp.where(self.penalty < 0, jnp.nan, 0)
        drawn = deviation.astype(dtype) * (self.scale_tril @ white)
        return drawn.reshape(*sample_shape, *self.event_shape)

    def _before(self):
        return self.law.posterior(0, jnp.zeros((), self.scale_tril.dtype))

    @property
    def mean(self):
        """Zero, NaN where the law has no mean."""
        zero = jnp.zeros(self.event_shape, self.scale_tril.dtype)
        return jnp.where(self.law.tail() > 0.5, zero, jnp.nan)

    @property
    def variance(self):
        """Marginal variances, infinite where the law has none."""
        law = self._before()
        own = jnp.sum(self.scale_tril**2, axis=-1)
        rows = own if self.outputs is None else own[:, None]
        values = jnp.where(self.law.tail() > 1, rows * law.mean, jnp.inf)
        return jnp.broadcast_to(values, self.event_shape)
