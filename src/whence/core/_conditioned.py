"""What conditioning on data in closed form returns: a posterior without an engine."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from ._types import AnyArray, PRNGKey, Scalar


@runtime_checkable
class Conditioned(Protocol):
    """A model of a function that was conditioned exactly on observations.

    `Posterior.from_conditioned` makes a posterior of any of them.
    """

    @property
    def log_evidence(self) -> Scalar:
        """Log density of the observations, in nats."""
        ...

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know before trusting it, in words; empty if nothing."""
        ...

    def latent(self, x: AnyArray) -> Any:
        """Return the joint law of the function at new inputs, without noise.

        Args:
            x: Inputs, rows first.

        Returns:
            A numpyro distribution.
        """
        ...

    def observation(self, x: AnyArray) -> Any:
        """Return the joint law of new observations, noise included.

        Args:
            x: Inputs, rows first.

        Returns:
            A numpyro distribution.
        """
        ...

    def condition(self, x: AnyArray, y: AnyArray) -> Conditioned:
        """Return the model given more observations.

        Args:
            x: Their inputs, rows first.
            y: Observations, rows first.
        """
        ...

    def sample(self, x: AnyArray, *, key: PRNGKey, draws: int = 1) -> dict[str, Any]:
        """Draw parameters and the function jointly, independently of other draws.

        Args:
            x: Inputs of the function, rows first.
            key: A typed key.
            draws: Number of draws.

        Returns:
            Arrays `(draw, ...)` by name; `"latent"`, of shape `(draw, point, ...)`, is the
            function.
        """
        ...
