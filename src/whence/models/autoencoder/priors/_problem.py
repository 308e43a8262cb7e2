"""What prior selection works on: an autoencoder, a law of its weights, and some data."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ....core import PRNGKey, part
from ....core._cache import remembering
from ..._fit import AbstractFit
from .._model import BayesianAutoencoder
from ._abstract_prior import AbstractPrior
from ._priors import movable_prior


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

    def __init__(self, model: BayesianAutoencoder, x: Any, *, start: Any = None):
        """Check that there is something to select, and something to select it by.

        Args:
            model: The autoencoder.
            x: Data for selection, not those of the fit; rows first.
            start: The prior to start from; by default that of the model.

        Raises:
            ValueError: If there is but one datum, data do not fit the model, or the prior has
                nothing to select.
        """
        x = part("model", BayesianAutoencoder)(model).check_data(x)
        if len(x) < 2:
            raise ValueError(
                "`x` must have at least 2 data, as distributions are compared (and a few dozen "
                f"to say much); got {len(x)}."
            )
        start = model.prior if start is None else start
        self.prior = movable_prior("start", start, model.networks())
        self.model, self.x = model, model.observation.read(jnp.asarray(x))
        self.flat = jnp.asarray(x).reshape(len(x), -1).astype(jnp.result_type(float))

    def made(self, params: Any, x: Array, draws: int, *, key: PRNGKey) -> Array:
        """Return images under the prior with other arrays, `(draw * row, feature)`."""
        prior = self.prior.with_params(params)
        one = lambda key: image_of(self.model, prior.sample(key=key), x)
        drawn = jax.vmap(one)(jr.split(key, draws))
        return drawn.reshape(-1, self.flat.shape[1]).astype(self.flat.dtype)


def image_of(model: BayesianAutoencoder, arrays: Any, x: Array) -> Array:
    """Return images of rows under weights by path, `(row, feature)`."""
    output = jax.vmap(model.network.with_arrays(arrays))(x)
    read = model.observation
    return read.image(read.parameter(output)).reshape(len(x), -1)


@remembering
def images_of(
    model: BayesianAutoencoder, prior: AbstractPrior, x: Array, key: PRNGKey
) -> Array:
    """Return an image of each datum as read under a network of its own, `(row, feature)`."""
    one = lambda pair: image_of(model, prior.sample(key=pair[1]), pair[0][None])[0]
    return jax.lax.map(one, (x, jr.split(key, len(x))), batch_size=32)


class Reconstruction(AbstractFit):
    """A plain autoencoder: the mean squared error of a pixel of its images.

    It starts from weights as layers usually do, a third of the variance of `whence.FanIn()`.
    """

    problem: PriorProblem

    @property
    def num_data(self) -> int:
        return len(self.problem.x)

    def start(self, *, key: PRNGKey) -> Any:
        layout = self.problem.prior.layout
        keys = jr.split(key, len(layout))
        scale = lambda e: jnp.asarray(e.scale / 3**0.5 if len(e.shape) > 1 else 0.0)
        return {e.path: e.loc + scale(e) * jr.normal(k, e.shape) for e, k in zip(layout, keys)}

    def loss(self, params, rows, *, key):
        x, flat = self.problem.x, self.problem.flat
        x, flat = (x, flat) if rows is None else (x[rows], flat[rows])
        return jnp.mean((image_of(self.problem.model, params, x) - flat) ** 2)
