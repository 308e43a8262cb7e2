"""What prior selection works on: an autoencoder, a law of its weights, and some data."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ....core._cache import remembering
from ....core._types import PRNGKey
from ..._fit import AbstractFit
from .._model import BayesianAutoencoder
from ._abstract_prior import AbstractPrior
from ._layout import Arrays


class PriorProblem(eqx.Module):
    """An autoencoder whose prior is to be selected so that reconstructions look like data.

    Attributes:
        model: The autoencoder.
        prior: The law of its weights to start from.
        x: Data, rows first, as the encoder reads them.
        flat: The same as rows of numbers, `(row, feature)`.
    """

    model: BayesianAutoencoder
    prior: AbstractPrior
    x: Array
    flat: Float[Array, "row feature"]

    def images(self, prior: AbstractPrior, x: Array, draws: int, *, key: PRNGKey) -> Array:
        """Return images of rows under draws of the weights, `(draw, row, feature)`.

        Args:
            prior: Law of the weights.
            x: Rows.
            draws: How many networks.
            key: A typed key.
        """

        def one(key):
            networks = self.model.network.with_arrays(prior.sample(key=key))
            read = self.model.observation
            image = read.image(read.parameter(jax.vmap(networks)(x)))
            return image.reshape(len(x), -1)

        return jax.vmap(one)(jr.split(key, draws))


@remembering
def images_of(problem: PriorProblem, prior: AbstractPrior, key: PRNGKey) -> Array:
    """Return an image of each datum under a network of its own, `(row, feature)`."""
    one = lambda pair: problem.images(prior, pair[0][None], 1, key=pair[1])[0, 0]
    return jax.lax.map(one, (problem.x, jr.split(key, len(problem.x))), batch_size=32)


class Reconstruction(AbstractFit):
    """A plain autoencoder: the squared error of its images, weights alone.

    Attributes:
        model: The autoencoder.
        begins: Weights to start from; None to draw them as layers usually are, with a third
            of the variance of `whence.FanIn()`.
        x: Data as the encoder reads them.
        flat: As rows of numbers.
    """

    model: BayesianAutoencoder
    begins: Arrays | None
    x: Array
    flat: Float[Array, "row feature"]

    @property
    def num_data(self) -> int:
        return len(self.x)

    def start(self, *, key: PRNGKey) -> Any:
        if self.begins is not None:
            return self.begins
        layout = self.model.prior.layout
        keys = jr.split(key, len(layout))
        scale = lambda e: jnp.asarray(e.scale / 3**0.5 if len(e.shape) > 1 else 0.0)
        return {e.path: e.loc + scale(e) * jr.normal(k, e.shape) for e, k in zip(layout, keys)}

    def loss(self, params, rows, *, key):
        x, flat = (self.x, self.flat) if rows is None else (self.x[rows], self.flat[rows])
        read = self.model.observation
        output = jax.vmap(self.model.network.with_arrays(params))(x)
        image = read.image(read.parameter(output)).reshape(len(x), -1)
        return jnp.mean(jnp.sum((image - flat) ** 2, axis=1))
