"""What a law of weights is: latents by name, and arrays made of their values."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from ....core._types import PRNGKey
from ....language._latent import Latent
from ._layout import Arrays, Layout


class AbstractPrior(eqx.Module):
    """A law of the weights of one network.

    Its floating-point arrays are what `select_prior` and `match_prior` move; all other
    numbers are fixed. `scales` are latents that the weights depend on, if it has any.
    """

    layout: eqx.AbstractVar[Layout]

    @abc.abstractmethod
    def scales(self) -> dict[str, Latent]:
        """Return latents that weights depend on, by name."""

    @abc.abstractmethod
    def weights(self, scales: dict[str, Array]) -> dict[str, Latent]:
        """Return latents that weights are made of, by name, given values of `scales`."""

    @abc.abstractmethod
    def arrays(self, values: dict[str, Array]) -> Arrays:
        """Return the arrays of the network by path, given values of `weights`."""

    def sample(self, *, key: PRNGKey) -> Arrays:
        """Draw the arrays of a network, differentiable in the arrays of this prior.

        Args:
            key: A typed key.
        """
        key_scales, key_weights = jr.split(key)
        scales = _draw(self.scales(), key_scales)
        return self.arrays(_draw(self.weights(scales), key_weights))


def _draw(latents: dict[str, Latent], key: PRNGKey) -> dict[str, Array]:
    drawn = {}
    for i, (name, latent) in enumerate(latents.items()):
        prior: Any = latent.prior
        drawn[name] = prior.expand(latent.shape).sample(jr.fold_in(key, i))
    return drawn


def inverse_softplus(value: Any) -> Array:
    """Return the number whose softplus is `value`."""
    value = jnp.asarray(value, jnp.result_type(float))
    return value + jnp.log(-jnp.expm1(-value))
