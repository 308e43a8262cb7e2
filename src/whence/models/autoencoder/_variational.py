"""Autoencoders with fitted weights and random codes: VAE, IWAE, WAE, VampPrior."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array

from ...core import PRNGKey, number, part, whole
from ...core._cache import remembering
from ...core._key import seeded
from .._fit import AbstractFit, Adam, run
from ._likelihoods import AbstractLikelihood, ContinuousBernoulli
from ._model import check_data
from ._networks import Networks

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class VariationalAutoencoder(AbstractFit):
    """An autoencoder with random codes, for `fit_variational` or `whence.train`.

    The encoder gives means and log standard deviations of a code (`dense(..., codes=2)`); for
    `objective="wae"` a code.

    | name | settings |
    | --- | --- |
    | VAE, beta-VAE | `beta` |
    | IWAE, MIWAE, PIWAE, CIWAE | `objective=whence.IWAE()` and so on, `samples` |
    | WAE-MMD | `objective="wae"`, `beta` the factor of the discrepancy |
    | VampPrior | `pseudo`, the number of pseudo-inputs |

    References:
        Kingma and Welling (2014), arXiv:1312.6114 (VAE). Higgins et al. (2017), beta-VAE, ICLR.
        Burda et al. (2016), arXiv:1509.00519 (IWAE). Rainforth et al. (2018), arXiv:1802.04537
        (MIWAE, PIWAE, CIWAE). Tolstikhin et al. (2018), arXiv:1711.01558 (WAE). Tomczak and
        Welling (2018), arXiv:1705.07120 (VampPrior).
    """

    networks: Networks
    observation: AbstractLikelihood
    x: Array
    objective: Any = eqx.field(static=True)
    beta: float = eqx.field(static=True)
    samples: int = eqx.field(static=True)
    pseudo: int = eqx.field(static=True)

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        x: Any,
        *,
        likelihood: AbstractLikelihood | None = None,
        objective: Any = None,
        beta: float | int = 1,
        samples: int = 1,
        pseudo: int = 0,
    ):
        """Check that networks, likelihood and data fit each other.

        Args:
            encoder: From a datum to what is said above.
            decoder: From a code to what the likelihood reads.
            x: Data, rows first.
            likelihood: One without latents of its own; by default `ContinuousBernoulli()`.
            objective: None for the evidence lower bound, another of `whence` whose gradient
                goes along the paths of codes, or `"wae"`.
            beta: Factor of the divergence (for WAE discrepancy) from the prior.
            samples: Codes for each datum.
            pseudo: Pseudo-inputs of a VampPrior; 0 is a standard normal prior.
        """
        likelihood = ContinuousBernoulli() if likelihood is None else likelihood
        self.observation = part("likelihood", AbstractLikelihood)(likelihood)
        if self.observation.priors:
            raise ValueError("`likelihood` must be without latents of its own: give its scale.")
        self.beta = number("beta", least=0)(beta)
        self.samples = whole("samples", least=1)(samples)
        self.pseudo = whole("pseudo", least=0)(pseudo)
        self.objective, wae = objective, isinstance(objective, str) and objective == "wae"
        if objective is not None and not wae:
            if getattr(objective, "at_fixed_draws", True) or isinstance(objective, type):
                raise ValueError(
                    "`objective` must be None, 'wae' or an instance such as `whence.IWAE()` "
                    f"whose gradient goes along the paths of codes; got {objective!r}."
                )
            self.objective.check(self.samples)
        if wae and self.pseudo:
            raise ValueError("`pseudo` must be 0 for 'wae', whose prior is normal.")
        # What the decoder reads are the means, half of what the encoder gives.
        half = encoder if wae else lambda row: jnp.split(encoder(row), 2)[0]
        self.x = jnp.asarray(check_data(x, Networks(half, decoder), self.observation))
        self.networks = Networks(encoder, decoder)

    @property
    def num_data(self) -> int:
        return len(self.x)

    def start(self, *, key: PRNGKey) -> Any:
        """Return the weights that the networks have, and some data as pseudo-inputs."""
        rows = jr.choice(key, len(self.x), (self.pseudo,))
        arrays = eqx.filter(self.networks, eqx.is_inexact_array)
        return arrays.encoder, arrays.decoder, self.observation.read(self.x[rows])

    def fitted(self, params: Any) -> Networks:
        """Return the networks with these weights."""
        return eqx.combine(Networks(*params[:2]), self.networks)

    def law(self, params: Any, x: Array) -> Any:
        """Return the law of codes given data as the encoder reads them."""
        mean, log_scale = jnp.split(jax.vmap(self.fitted(params).encoder)(x), 2, axis=-1)
        return dist.Normal(mean, jnp.exp(log_scale)).to_event(1)

    def log_prior(self, params: Any, z: Array) -> Any:
        """Return the log density of codes `(..., latent)`."""
        if not self.pseudo:
            return dist.Normal(jnp.zeros(z.shape[-1:]), 1.0).to_event(1).log_prob(z)
        each = self.law(params, params[2]).log_prob(z[..., None, :])
        return logsumexp(each, axis=-1) - math.log(self.pseudo)

    def log_weights(
        self, params: Any, x: Array, samples: int, *, key: PRNGKey, beta: float = 1.0
    ) -> Array:
        """Return `log p(x | z) + beta log(p(z) / q(z | x))`, `(sample, row)`."""
        law, decoder = self.law(params, self.observation.read(x)), self.fitted(params).decoder
        z = law.sample(key, (samples,))
        output = lambda z: self.observation.distribution(jax.vmap(decoder)(z), {})
        given = jax.vmap(lambda z: output(z).log_prob(x))(z)
        return given + beta * (self.log_prior(params, z) - law.log_prob(z))

    def loss(self, params, rows, *, key):
        x = self.x if rows is None else self.x[rows]
        if self.objective == "wae":
            z = _means(self, params, x)
            output = jax.vmap(self.fitted(params).decoder)(z)
            given = self.observation.distribution(output, {}).log_prob(x)
            return self.beta * discrepancy(z, jr.normal(key, z.shape)) - jnp.mean(given)

        def value(objective, params):
            w = self.log_weights(params, x, self.samples, key=key, beta=self.beta)
            if objective is None:
                return jnp.mean(w)
            return jnp.mean(jax.vmap(lambda w: objective.value(objective.arrange(w)))(w.T))

        if self.objective is None or self.objective.of_model is self.objective:
            return -value(self.objective, params)
        # The decoder follows another objective of the same codes than the encoder does.
        stop, (encoder, decoder, pseudo) = jax.lax.stop_gradient, params
        own = value(self.objective, (encoder, stop(decoder), pseudo))
        other = value(self.objective.of_model, (stop(encoder), decoder, stop(pseudo)))
        return -own - (other - stop(other))


def discrepancy(a: Array, b: Array) -> Array:
    """Return the squared maximum mean discrepancy of two samples, without bias.

    With the sum over scales s of inverse multiquadratic kernels `C / (C + |z - z'|^2)`,
    `C = 2 d s`, and d the width of a code; Gretton et al. (2012), JMLR 13, lemma 6.
    """
    n, dim = a.shape

    def kernel(u, v):
        square = jnp.sum((u[:, None] - v[None]) ** 2, axis=-1)
        widths = 2 * dim * jnp.asarray(SCALES, square.dtype)
        return jnp.sum(widths / (widths + square[..., None]), axis=-1)

    within = lambda k: (k.sum() - jnp.trace(k)) / (n * (n - 1))
    return within(kernel(a, a)) + within(kernel(b, b)) - 2 * kernel(a, b).mean()


@dataclasses.dataclass(frozen=True)
class FittedVariational:
    """An autoencoder with random codes, fitted: its weights, and losses of some steps."""

    problem: VariationalAutoencoder
    params: Any
    losses: np.ndarray

    def encode(self, x: Any) -> np.ndarray:
        """Return codes (their means), `(row, latent)`."""
        return np.asarray(_encode(self.problem, self.params, jnp.asarray(x)))

    def decode(self, codes: Any) -> np.ndarray:
        """Return images of codes, without noise."""
        parameter = _decode(self.problem, self.params, jnp.asarray(codes))
        return np.asarray(self.problem.observation.image(parameter))

    def reconstruct(self, x: Any) -> np.ndarray:
        """Return images of data at the means of their codes."""
        return self.decode(self.encode(x))

    def log_likelihood(self, x: Any) -> np.ndarray:
        """Return log likelihoods of data at the means of their codes, in nats, by row."""
        parameter = _decode(self.problem, self.params, self.encode(x))
        law = self.problem.observation.law(parameter, {})
        return np.asarray(law.log_prob(jnp.asarray(x)))

    @seeded
    def log_prob(self, x: Any, *, key: PRNGKey, samples: int = 500) -> np.ndarray:
        """Return lower bounds of log densities of data by importance sampling, in nats.

        One of `samples` codes for each datum gives the ELBO, by one draw.
        """
        if self.problem.objective == "wae":
            raise ValueError("`objective` must not be 'wae': its codes have no density.")
        samples = whole("samples", least=1)(samples)
        return np.asarray(_bound(self.problem, self.params, jnp.asarray(x), samples, key))

    @seeded
    def generate(self, num: int, *, key: PRNGKey) -> np.ndarray:
        """Make new images from codes of the prior, without noise."""
        num = whole("num", least=1)(num)
        return self.decode(_codes(self.problem, self.params, num, key))


def _means(problem, params, x):
    code = jax.vmap(problem.fitted(params).encoder)(problem.observation.read(x))
    return code if problem.objective == "wae" else jnp.split(code, 2, axis=-1)[0]


_encode = remembering(_means)


@remembering
def _decode(problem, params, z):
    return problem.observation.parameter(jax.vmap(problem.fitted(params).decoder)(z))


@remembering
def _bound(problem, params, x, samples, key):
    def one(pair):
        row, key = pair
        w = problem.log_weights(params, row[None], samples, key=key)
        return logsumexp(w) - math.log(samples)

    return jax.lax.map(one, (x, jr.split(key, len(x))), batch_size=16)


@remembering
def _codes(problem, params, num, key):
    key_which, key_code = jr.split(key)
    if problem.pseudo:
        which = jr.randint(key_which, (num,), 0, problem.pseudo)
        return problem.law(params, params[2][which]).sample(key_code)
    return jr.normal(key_code, (num, _means(problem, params, problem.x[:1]).shape[1]))


@seeded
def fit_variational(
    problem: VariationalAutoencoder, *, key: PRNGKey, fit: Adam | None = None
) -> FittedVariational:
    """Fit an autoencoder with random codes.

    Args:
        problem: The autoencoder, with its data.
        key: A typed key.
        fit: How; by default 2,000 steps of Adam. Few steps are a regularisation: longer
            training of small data over-fits.
    """
    state, trace = run(problem, Adam() if fit is None else fit, key=key)
    return FittedVariational(problem, state.params, trace["loss"])
