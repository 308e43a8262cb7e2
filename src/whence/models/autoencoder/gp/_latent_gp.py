"""`LatentGP`: data decoded from codes that are functions of known inputs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array

from ....core import PRNGKey, part, whole
from ....core._key import seeded
from ....language import Model, latent
from ....language._latent import UNDRAWN, Coords, latents
from ....language._module_priors import FanIn
from ..._fit import AbstractFit, Adam, run
from .._likelihoods import AbstractLikelihood, Gaussian
from .._model import check_output, noise_of
from ..priors._network import RandomNetwork
from ._sparse import SparseLayer, squared_exponential


class LatentGP(Model):
    """Data with inputs (time, place, angle): codes are GPs of the inputs, a network decodes.

    `y_n ~ likelihood(decoder(z_n; w))` with z the values at x_n of sparse GPs with random
    inducing inputs, through several layers if `layers` has several widths. Weights, inducing
    inputs and values, hyper-parameters and codes are all latents of one posterior, whose
    temperature is 1: in the published code gradients were scaled by the number of data twice,
    which samples a posterior of temperature 1 / N.

    `whence.condition(model, y, x)`; NaN in y are missing numbers. `posterior.predict(x)` draws
    data at new inputs. `standard` are standardised values of every layer, local to the rows of
    the data: engines that take minibatches see those of a batch.

    References:
        Tran, Shahbaba, Mandt and Filippone (2023), Fully Bayesian autoencoders with latent
        sparse Gaussian processes, ICML, arXiv:2302.04534.
    """

    layers: tuple[SparseLayer, ...]
    decoder: RandomNetwork
    observation: AbstractLikelihood
    noise: dict[str, Any] = latents(noise_of)
    standard: Array = latent(
        dist.Normal(0.0, 1.0),
        shape=lambda m: (sum(layer.size[1] for layer in m.layers),),
        start="prior",
        local=True,
    )

    def __init__(
        self,
        decoder: Any,
        x: Any,
        *,
        latent: int | None = None,
        layers: tuple[int, ...] = (),
        inducing: int = 16,
        likelihood: Any = None,
        prior: Any = None,
        correlation: Any = squared_exponential,
        start: str = "module",
    ):
        """Make a model.

        Args:
            decoder: An Equinox module from one code to what the likelihood reads.
            x: Inputs of the data, `(row, feature)`.
            latent: Numbers in a code.
            layers: Widths of hidden layers of GPs; none by default.
            inducing: Inducing inputs of each layer.
            likelihood: By default `Gaussian("global")`.
            prior: Of the decoder's weights; by default `whence.FanIn()`.
            correlation: From inputs in units of length scales, two sets of rows, to their
                correlations, 1 for a row with itself.
            start: Where engines start the decoder: the weights of the `"module"`, or the
                `"prior"`.
        """
        x = np.asarray(x, jnp.result_type(float))
        if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
            raise ValueError(f"`x` must be finite, of shape (row, feature); got {x.shape}.")
        if not (x.std(axis=0) > 0).all():
            raise ValueError(
                f"`x` must vary; its column {int(np.argmin(x.std(axis=0)))} is constant, and "
                "no length scale can be told."
            )
        widths = [*map(whole("layers", least=1), layers), whole("latent", least=1)(latent)]
        size = whole("inducing", least=1)(inducing)
        self.observation = part("likelihood", AbstractLikelihood)(
            Gaussian("global") if likelihood is None else likelihood
        )
        self.decoder = RandomNetwork(decoder, FanIn() if prior is None else prior, start=start)
        made, centre, spread = [], jnp.asarray(x.mean(0)), jnp.asarray(x.std(0))
        for i, width in enumerate(widths):
            hidden = i < len(widths) - 1 and width <= len(centre)
            made.append(SparseLayer(centre, spread, (size, width), correlation, hidden))
            centre, spread = jnp.zeros(width), jnp.ones(width)
        self.layers = tuple(made)
        self.noise = dict.fromkeys(self.observation.priors, UNDRAWN)
        self.standard = UNDRAWN  # pyright: ignore[reportAttributeAccessIssue]
        self.coords = Coords()

    def codes(self, x: Any, standard: Array | None = None) -> Array:
        """Return codes at inputs `(row, feature)`: means of the last layer, or values.

        Values need standard normal numbers, as `standard` of the model for the rows of data.
        """
        values, begin = jnp.asarray(x), 0
        for layer in self.layers:
            if standard is None:
                values = layer.moments(values)[0]
            else:
                own = standard[:, begin : begin + layer.size[1]]
                values, begin = layer.values(values, own), begin + layer.size[1]
        return values

    def law(self, codes: Array) -> Any:
        """Return the law of data given codes, each number by itself."""
        law: Any = self.observation.distribution(self.decoder(codes), self.noise)
        return law.base_dist if isinstance(law, dist.Independent) else law

    def log_likelihood(self, y: Any, x: Any, observed: Any = True) -> Array:
        """Return the log likelihood of each row, in nats, of what was observed of it."""
        each = self.law(self.codes(x, self.standard)).log_prob(y)
        return jnp.where(observed, each, 0).reshape(len(y), -1).sum(axis=1)

    def predict(self, x: Any, observed: Any = None, *, key: PRNGKey) -> Array:
        """Draw data at inputs, codes at the values that this draw has for their rows.

        `posterior.predict(x)` draws values for new rows given all else.
        """
        # Whether inputs will do is asked before there are values for their rows.
        known = len(x) == len(self.standard)
        return self.law(self.codes(x, self.standard if known else None)).sample(key)

    def prepare(self, y: Any, *inputs: Any) -> tuple[Any, tuple]:
        """Check data and their inputs, and say what of the data is missing."""
        if len(inputs) != 1:
            raise ValueError(
                "LatentGP needs the inputs of `y`: `whence.condition(model, y, x)`; got "
                f"{len(inputs)} arrays besides."
            )
        if isinstance(y, Tracer):
            return y, (inputs[0], jnp.isfinite(y))
        y, x = np.asarray(y), np.asarray(inputs[0], jnp.result_type(float))
        features = len(self.layers[0].centre)
        if x.shape != (len(y), features):
            raise ValueError(
                f"`x` must have shape {(len(y), features)}, a row for each of `y`; got "
                f"{x.shape}."
            )
        observed = np.isfinite(y) if np.issubdtype(y.dtype, np.floating) else y == y
        y = np.where(observed, y, y.dtype.type(0))
        self.observation.check(y)
        code = jax.ShapeDtypeStruct((self.layers[-1].size[1],), jnp.result_type(float))
        check_output(self.decoder.template(), self.observation, code, y.shape[1:])
        return y, (x, observed)


class Amortised(AbstractFit):
    """An encoder with noise of its own, whose codes are to be distributed as draws are.

    The energy score `|e(y, a) - z| - |e(y, a) - e(y, b)| / 2`, a and b independent noise, is
    least on average where codes given y have the law of the draws z `(draw, row, latent)`.

    References:
        Gneiting and Raftery (2007), doi:10.1198/016214506000001437.
    """

    encoder: Any
    y: Array
    codes: Array

    @property
    def num_data(self) -> int:
        return len(self.y)

    def start(self, *, key: PRNGKey) -> Any:
        return eqx.filter(self.encoder, eqx.is_inexact_array)

    def trained(self, params: Any) -> Any:
        """Return the encoder with these weights."""
        return eqx.combine(params, self.encoder)

    def loss(self, params, rows, *, key):
        encoder = self.trained(params)
        key_draw, key_noise = jr.split(key)
        y = self.y if rows is None else self.y[rows]
        which = jr.randint(key_draw, (len(y),), 0, len(self.codes))
        z = self.codes[which, jnp.arange(len(self.y)) if rows is None else rows]
        first, second = (encode_implicit(encoder, y, key=k) for k in jr.split(key_noise))
        far = lambda a, b: jnp.sqrt(jnp.sum((a - b) ** 2, axis=1) + 1e-12)
        both = far(first, z) + far(second, z)
        return jnp.mean(0.5 * both - 0.5 * far(first, second))


def encode_implicit(encoder: Any, y: Array, *, key: PRNGKey) -> Array:
    """Return codes of rows of data under fresh noise."""
    noise = jr.normal(key, y.shape, y.dtype)
    return jax.vmap(encoder)(jnp.stack([y, noise], axis=1))


@seeded
def amortise(posterior: Any, encoder: Any, *, key: PRNGKey, fit: Adam | None = None) -> Any:
    """Train an encoder that draws codes of data as the posterior of a `LatentGP` does.

    For data that come without inputs, or too many to sample. It learns the codes of one
    posterior: decode with draws of that one. `encode_implicit(encoder, y, key=key)` draws.

    Args:
        posterior: Of a `LatentGP`, without missing numbers.
        encoder: An Equinox module that reads `(2, *shape)`, a datum and noise.
        key: A typed key.
        fit: How; by default 2,000 steps of Adam.
    """
    model = getattr(getattr(posterior, "target", None), "model", None)
    if not isinstance(model, LatentGP):
        raise ValueError(f"`posterior` must be one of a LatentGP; got {posterior!r}.")
    x = posterior.target.inputs[0]
    codes = posterior.map(lambda m: m.codes(x, m.standard))
    codes = jnp.asarray(codes.reshape(-1, *codes.shape[2:]))
    y = jnp.asarray(model.observation.read(jnp.asarray(posterior.target.y)))
    problem = Amortised(encoder, y, codes)
    state, _ = run(problem, Adam() if fit is None else fit, key=key)
    return problem.trained(state.params)
