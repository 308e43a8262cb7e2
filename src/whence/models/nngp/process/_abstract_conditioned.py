"""The laws that a process has after observations, asked for in four ways."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from ....core._types import AnyArray, Scalar


class AbstractConditioned(eqx.Module):
    """A process given observations. A final class makes the laws, with noise or without."""

    @abc.abstractmethod
    def _predict(self, x: AnyArray, noisy: bool) -> dist.Distribution:
        """Return the joint law at new inputs."""

    @abc.abstractmethod
    def _predict_each(self, x: AnyArray, noisy: bool) -> dist.Distribution:
        """Return the law at each new input by itself."""

    def latent(self, x: AnyArray) -> dist.Distribution:
        """Return the law of the function at new inputs, without noise.

        Returns:
            A distribution of shape `(points,)`; with several outputs `(outputs * points,)`,
            the points of the first output first. Jointly, as all share the scale; where it
            is a mixture over nodes, the density of very many points at once is less exact.
        """
        return self._predict(x, False)

    def observation(self, x: AnyArray) -> dist.Distribution:
        """Return the law of new observations, noise included, of the shape of `latent`."""
        return self._predict(x, True)

    def latent_marginals(self, x: AnyArray) -> dist.Distribution:
        """Return the law of the function at each new input by itself, for intervals.

        Its memory grows with the points and not with their square.

        Returns:
            A distribution of batch shape `(points,)`, or `(points, outputs)`.
        """
        return self._predict_each(x, False)

    def observation_marginals(self, x: AnyArray) -> dist.Distribution:
        """Return the law of each new observation by itself; see `latent_marginals`."""
        return self._predict_each(x, True)


class OneScale:
    """A `ScaleMixture` given observations: what their number and sum of squares say of v."""

    process: Any
    y: Array
    quadratic: Any
    log_det: Any

    @property
    def size(self) -> int:
        """Number of observations, rows times outputs."""
        return self.y.size

    @property
    def log_evidence(self) -> Scalar:
        """Log density of the observations, in nats."""
        integral = self.process.scale.log_integral(self.size, self.quadratic)
        return integral - (self.size * jnp.log(2 * jnp.pi) + self.log_det) / 2

    @property
    def scale(self) -> dist.Distribution:
        """Posterior of v."""
        return self.process.scale.posterior(self.size, self.quadratic)

    @property
    def conflict(self) -> Scalar:
        """Two-sided p-value of the observations' size under the law of the scale.

        Near zero the law of v expects far larger or far smaller observations than came; NaN
        for an improper law, which expects nothing.

        References:
            Evans and Moshonov (2006), Checking for prior-data conflict,
            doi:10.1214/06-BA129.
        """
        above = self.process.scale.exceedance(self.size, self.quadratic)
        return 2 * jnp.minimum(above, 1 - above)
