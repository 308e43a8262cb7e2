"""What is predicted at new points: a mixture over draws, or over components in closed form."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array

from ._likelihood import AbstractLikelihood, Gaussian


class Prediction(eqx.Module):
    """Law of new observations at each point, noise included.

    Attributes:
        likelihood: Of the scores.
        log_weights: Of the parts of the mixture, normalised, `(part,)`.
        scores: `(part, point, score)`.
        spread: Variance of the scores within each part, as `scores`; None if they are draws.
    """

    likelihood: AbstractLikelihood
    log_weights: Array
    scores: Array
    spread: Array | None = None

    def _weigh(self, values: Array) -> Array:
        weights = jnp.exp(self.log_weights).reshape(-1, *[1] * (values.ndim - 1))
        return jnp.sum(weights * values, axis=0)

    def _deviation(self) -> Array:
        assert isinstance(self.likelihood, Gaussian)
        noise = jnp.broadcast_to(self.likelihood.scale**2, self.scores.shape)
        return jnp.sqrt(noise if self.spread is None else noise + self.spread)

    @property
    def mean(self) -> Array:
        """Mean of y, `(point, output)`, or probabilities of classes, `(point, class)`."""
        return self._weigh(jax.vmap(self.likelihood.mean)(self.scores))

    @property
    def variance(self) -> Array:
        """Variance of y, `(point, output)`, noise included; of regressions."""
        self._regression("variance")
        off = (self.scores - self.mean[None]) ** 2
        return self._weigh(off + self._deviation() ** 2)

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
            deviation = self._deviation()
            z = (y.reshape(self.scores.shape[1:])[None] - self.scores) / deviation
            normal = -(z**2) / 2 - jnp.log(deviation) - jnp.log(2 * jnp.pi) / 2
            each = jnp.sum(normal, axis=-1)
        return jax.nn.logsumexp(self.log_weights[:, None] + each, axis=0)

    def cdf(self, y: Any) -> Array:
        """Return the probability of at most y, `(point, output)`; of regressions.

        Args:
            y: As for `log_prob`.
        """
        self._regression("cdf")
        y = jnp.asarray(y).reshape(self.scores.shape[1:])
        return self._weigh(ndtr((y[None] - self.scores) / self._deviation()))

    def _regression(self, what: str) -> None:
        if not isinstance(self.likelihood, Gaussian):
            raise ValueError(f"`{what}` is of regressions; this one is of labels.")
