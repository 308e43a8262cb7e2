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


def noise_of(model: Any) -> dict[str, Latent]:
    """Return the latents of a model's likelihood."""
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

    References:
        Tran, Rossi, Milios, Michiardi, Bonilla and Filippone (2021), Model selection for
        Bayesian autoencoders, NeurIPS, arXiv:2106.06245.
    """

    network: RandomNetwork
    observation: AbstractLikelihood
    noise: dict[str, Any] = latents(noise_of)

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
        """
        likelihood = ContinuousBernoulli() if likelihood is None else likelihood
        if isinstance(likelihood, type) and issubclass(likelihood, AbstractLikelihood):
            raise ValueError(f"`likelihood` must be made: write `{likelihood.__name__}()`.")
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
        """Return this model with another prior, what `select_prior` returned for example."""
        rule = {"likelihood": self.observation, "prior": prior}
        rule["start"] = "prior" if self.network.begins is None else "module"
        return BayesianAutoencoder(*self.networks(), **rule)

    def encode(self, x: Any) -> Array:
        """Return the codes of many rows of data, `(row, latent)`."""
        return jax.vmap(self.network.module.encoder)(self.observation.read(jnp.asarray(x)))

    def decode(self, codes: Array) -> Array:
        """Return what the decoder gives for many codes, as the likelihood reads it."""
        return jax.vmap(self.network.module.decoder)(codes)

    def likelihood(self, x):
        output = self.network(self.observation.read(x))
        return self.observation.distribution(output, self.noise)

    def prepare(self, y: Any, *inputs: Any) -> tuple[Any, tuple]:
        """Check data; they are read as well as explained unless others are given to read."""
        if len(inputs) > 1:
            raise ValueError(
                "`condition` takes data and at most one other array for the encoder to read; "
                f"got {len(inputs)}."
            )
        y = self.check_data(y)
        return y, inputs or (y,)

    def check_data(self, x: Any) -> Any:
        """Return data as an array; raise `ValueError` if they cannot be data of this model."""
        return check_data(x, self.networks(), self.observation)


def check_data(x: Any, networks: Networks, observation: AbstractLikelihood) -> Any:
    """Return data as an array; raise `ValueError` unless networks and likelihood fit them."""
    x = np.asarray(x) if not isinstance(x, jax.Array | np.ndarray) else x
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"`x` must have rows of data along its first axis; got {x.shape}.")
    one = jax.ShapeDtypeStruct(x.shape[1:], jax.dtypes.canonicalize_dtype(x.dtype))
    code = _output("encoder", networks.encoder, jax.eval_shape(observation.read, one))
    if code.ndim != 1 or code.size == 0:
        raise ValueError(
            f"`encoder` must give a code of shape (latent,) with at least one number; got "
            f"{code.shape}."
        )
    check_output(networks.decoder, observation, code, tuple(x.shape[1:]))
    if not isinstance(x, Tracer):
        if not np.isfinite(np.asarray(x)).all():
            raise ValueError("`x` must be finite: an encoder cannot read missing values.")
        observation.check(np.asarray(x))
    return x


def check_output(
    decoder: Any, observation: AbstractLikelihood, code: Any, shape: tuple[int, ...]
) -> None:
    """Raise `ValueError` unless a decoder gives what data of a shape need."""
    output, want = _output("decoder", decoder, code), tuple(observation.output_shape(shape))
    if tuple(output.shape) != want:
        raise ValueError(
            f"`decoder` must give outputs of shape {want} for data of shape {shape}; got "
            f"{tuple(output.shape)}."
        )


def _output(name: str, network: Any, given: Any) -> Any:
    try:
        return jax.eval_shape(lambda v: network(v), given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must take an array of shape {given.shape}; it fails: {error}"
        ) from error
