"""The laws that a process has after observations, asked for in four ways."""

import abc

import equinox as eqx
import numpyro.distributions as dist

from ....core._types import AnyArray


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

        Args:
            x: Inputs at which to predict.

        Returns:
            A distribution of shape `(points,)`; with several outputs `(outputs * points,)`,
            the points of the first output first. Jointly, as all share the scale; where it
            is a mixture over nodes, the density of very many points at once is less exact.
        """
        return self._predict(x, False)

    def observation(self, x: AnyArray) -> dist.Distribution:
        """Return the law of new observations, noise included.

        Args:
            x: Inputs at which to predict.

        Returns:
            As `latent`.
        """
        return self._predict(x, True)

    def latent_marginals(self, x: AnyArray) -> dist.Distribution:
        """Return the law of the function at each new input by itself, for intervals.

        Its memory grows with the points and not with their square.

        Args:
            x: Inputs at which to predict.

        Returns:
            A distribution of batch shape `(points,)`, or `(points, outputs)`.
        """
        return self._predict_each(x, False)

    def observation_marginals(self, x: AnyArray) -> dist.Distribution:
        """Return the law of each new observation by itself, noise included.

        Args:
            x: Inputs at which to predict.

        Returns:
            As `latent_marginals`.
        """
        return self._predict_each(x, True)
