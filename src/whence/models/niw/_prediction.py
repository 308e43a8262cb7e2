"""What is predicted at new points: a mixture over draws, or over components in closed form."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array

from ._likelihood import AbstractLikelihood, Gaussian


class Prediction(eqx.Module):
    """Law of new observations at each point, noise included."""

    likelihood: AbstractLikelihood  # of the scores
    log_weights: Array  # of the parts of the mixture, normalised, `(part,)`
    scores: Array  # `(part, point, score)`
    spread: Array | None = None  # variance of the scores within each part; None for draws

    def _weigh(self, values: Array) -> Array:
        weights = jnp.exp(self.log_weights).reshape(-1, *[1] * (values.ndim - 1))
        return jnp.sum(weights * values, axis=0)

    def _deviation(self, asked: str) -> Array:
        if not isinstance(self.likelihood, Gaussian):
            raise ValueError(f"`{asked}` is of regressions; this one is of labels.")
        noise = jnp.broadcast_to(self.likelihood.scale**2, self.scores.shape)
        return jnp.sqrt(noise if self.spread is None else noise + self.spread)

    @property
    def mean(self) -> Array:
        """Mean of y, `(point, output)`, or probabilities of classes, `(point, class)`."""
        return self._weigh(jax.vmap(self.likelihood.mean)(self.scores))

    @property
    def variance(self) -> Array:
        """Variance of y, `(point, output)`, noise included; of regressions."""
        off = (self.scores - self.mean[None]) ** 2
        return self._weigh(off + self._deviation("variance") ** 2)

    def log_prob(self, y: Any) -> Array:
        """Return the log density of an observation at each point, in nats, `(point,)`.

        Args:
            y: Observations, `(point,)` or `(point, output)`; labels, `(point,)`. Several
                outputs count as independent given the part of the mixture.
        """
        y = jnp.asarray(y)
        if self.spread is None:
            each = jax.vmap(lambda s: self.likelihood.log_prob(s, y))(self.scores)
        else:
            y, deviation = y.reshape(self.scores.shape[1:]), self._deviation("log_prob")
            each = jnp.sum(norm.logpdf(y[None], self.scores, deviation), axis=-1)
        return jax.nn.logsumexp(self.log_weights[:, None] + each, axis=0)

    def cdf(self, y: Any) -> Array:
        """Return the probability of at most y, `(point, output)`; of regressions.

        Args:
            y: As for `log_prob`.
        """
        y = jnp.asarray(y).reshape(self.scores.shape[1:])
        return self._weigh(norm.cdf(y[None], self.scores, self._deviation("cdf")))
