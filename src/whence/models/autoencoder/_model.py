"""`BayesianAutoencoder`: an encoder and a decoder whose weights are latents."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ...core._convert import part
from ...language import Model
from ...language._latent import UNDRAWN, Coords, Latent, latents
from ...language._module_priors import FanIn
from ._likelihoods import AbstractLikelihood, ContinuousBernoulli
from ._networks import Networks
from .priors._abstract_prior import AbstractPrior
from .priors._network import RandomNetwork


def _noise(model: "BayesianAutoencoder") -> dict[str, Latent]:
    return {
        name: Latent(prior=prior, shape=None, dims=(), noncentered=False, start="prior")
        for name, prior in model.observation.priors.items()
    }


class BayesianAutoencoder(Model):
    """An autoencoder with a distribution of the weights of both networks.

    `p(w | x) is proportional to p(w) prod_n p(x_n | decoder(encoder(x_n; w); w))`. Codes are
    functions of a datum and the weights; there is no distribution of a code besides. The
    likelihood is that of x given x, a regression of the data on themselves and no generative
    model of them: for new data fit a density to codes (`DirichletMixture`) and `generate`.

    `whence.condition(model, x)` reads and explains x; `whence.condition(model, x, y)` reads y
    to explain x, as in denoising. Draws of `posterior.predict(x)` are data with the noise of
    the likelihood; `reconstruct` gives images without.

    Attributes:
        network: Encoder and decoder with the prior of their weights.
        observation: The likelihood.
        noise: Latents of the likelihood.

    References:
        Tran, Rossi, Milios, Michiardi, Bonilla and Filippone (2021), Model selection for
        Bayesian autoencoders, NeurIPS, arXiv:2106.06245.
    """

    network: RandomNetwork
    observation: AbstractLikelihood
    noise: dict[str, Any] = latents(_noise)

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        *,
        likelihood: Any = None,
        prior: Any = None,
        start: str = "module",
    ):
        """Make a model of two networks.

        Args:
            encoder: An Equinox module from one datum to its code.
            decoder: An Equinox module from one code to what the likelihood reads: logits for
                `ContinuousBernoulli()`, with the shape of a datum.
            likelihood: By default `ContinuousBernoulli()`.
            prior: By default `whence.FanIn()`; see `RandomNetwork`.
            start: Where engines start: at the weights of the `"module"` or the `"prior"`.

        Raises:
            ValueError: If an argument is not of this form.
        """
        likelihood = ContinuousBernoulli() if likelihood is None else likelihood
        if isinstance(likelihood, type) and issubclass(likelihood, AbstractLikelihood):
            raise ValueError(
                f"`likelihood` must be an instance: write `{likelihood.__name__}()`."
            )
        self.observation = part("likelihood", AbstractLikelihood)(likelihood)
        for name, net in {"encoder": encoder, "decoder": decoder}.items():
            if not isinstance(net, eqx.Module) or not callable(net):
                raise ValueError(f"`{name}` must be an Equinox module; got {net!r}.")
        prior = FanIn() if prior is None else prior
        self.network = RandomNetwork(Networks(encoder, decoder), prior, start=start)
        self.noise = dict.fromkeys(self.observation.priors, UNDRAWN)
        self.coords = Coords()

    @property
    def prior(self) -> AbstractPrior:
        """Law of the weights."""
        return self.network.prior

    def networks(self) -> Networks:
        """Return encoder and decoder with the weights that runs start from."""
        return self.network.template()

    def with_prior(self, prior: Any) -> "BayesianAutoencoder":
        """Return this model with another prior of its weights.

        Args:
            prior: See `RandomNetwork`; what `select_prior` returned, for example.
        """
        encoder, decoder = self.networks()
        start = "prior" if self.network.begins is None else "module"
        return BayesianAutoencoder(
            encoder, decoder, likelihood=self.observation, prior=prior, start=start
        )

    # -- of a draw ---------------------------------------------------------------

    def encode(self, x: Any) -> Array:
        """Return the codes of many rows of data, `(row, latent)`."""
        return jax.vmap(self.network.module.encoder)(self.observation.read(jnp.asarray(x)))

    def decode(self, codes: Array) -> Array:
        """Return what the decoder gives for many codes, as the likelihood reads it."""
        return jax.vmap(self.network.module.decoder)(codes)

    def likelihood(self, x):
        output = self.network(self.observation.read(x))
        return self.observation.distribution(output, self.noise)

    # -- data --------------------------------------------------------------------

    def prepare(self, y: Any, *inputs: Any) -> tuple[Any, tuple]:
        """Check data; they are read as well as explained unless others are given to read.

        Args:
            y: What `condition` got.
            *inputs: What the encoder reads, if not `y`.
        """
        if len(inputs) > 1:
            raise ValueError(
                "`condition` takes data and at most one other array for the encoder to read; "
                f"got {len(inputs)}."
            )
        y = self.check_data(y)
        return y, inputs or (y,)

    def check_data(self, x: Any) -> Any:
        """Return data as an array; raise `ValueError` if they cannot be data of this model."""
        x = np.asarray(x) if not isinstance(x, jax.Array | np.ndarray) else x
        if x.ndim < 2 or len(x) == 0:
            raise ValueError(f"`x` must have rows of data along its first axis; got {x.shape}.")
        check_shapes(self.networks(), self.observation, x)
        if not isinstance(x, Tracer):
            self.observation.check(np.asarray(x))
        return x


def check_shapes(networks: Networks, observation: AbstractLikelihood, x: Any) -> int:
    """Return the width of a code; raise `ValueError` if networks, likelihood, data disagree.

    Args:
        networks: Encoder and decoder.
        observation: The likelihood.
        x: Data, rows first.
    """
    encoder, decoder = networks
    one = jax.ShapeDtypeStruct(x.shape[1:], jax.dtypes.canonicalize_dtype(x.dtype))
    row = jax.eval_shape(observation.read, one)
    try:
        code = jax.eval_shape(lambda r: encoder(r), row)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`encoder` must take one datum, here of shape {row.shape}; it fails: {error}"
        ) from error
    if code.ndim != 1 or code.size == 0:
        raise ValueError(
            f"`encoder` must give a code of shape (latent,) with at least one number; got "
            f"{code.shape}."
        )
    try:
        output = jax.eval_shape(lambda z: decoder(z), code)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`decoder` must take a code of shape {code.shape}; it fails: {error}"
        ) from error
    want = observation.output_shape(tuple(x.shape[1:]))
    if tuple(output.shape) != tuple(want):
        raise ValueError(
            f"`decoder` must give outputs of shape {want} for data of shape "
            f"{tuple(x.shape[1:])}; got {tuple(output.shape)}."
        )
    return code.size
