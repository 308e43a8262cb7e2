"""Autoencoders of other kinds on the same networks: VAE, IWAE, WAE, VampPrior.

Weights are fitted numbers here; codes are random (but for WAE).
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array

from ...core._cache import remembering
from ...core._convert import number, one_of, part, whole
from ...core._key import seeded
from ...core._types import PRNGKey
from .._fit import AbstractFit, Adam, run
from ._likelihoods import AbstractLikelihood, ContinuousBernoulli
from ._model import check_shapes
from ._networks import Networks

OBJECTIVES = ("elbo", "iwae", "wae")
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Variational(AbstractFit):
    """A fit of an autoencoder with random codes: `fit` makes it, or `whence.train`.

    For the objectives `"elbo"` and `"iwae"` an encoder gives means and log standard
    deviations of a code (`dense(..., codes=2)`); for `"wae"` a code.

    Attributes:
        networks: Encoder and decoder.
        observation: The likelihood.
        x: Data.
        objective: `"elbo"`; `"iwae"`, the bound of several samples; or `"wae"`, the likelihood
            and a penalty on the discrepancy of codes from the prior.
        beta: Factor of the divergence from the prior; for `"wae"` of the discrepancy.
        samples: Codes for each datum.
        mix: Part of the ELBO in the objective `"iwae"` (CIWAE).
        pseudo: Pseudo-inputs of a VampPrior; 0 is a standard normal prior.

    References:
        Kingma and Welling (2014), arXiv:1312.6114 (VAE). Higgins et al. (2017), beta-VAE, ICLR.
        Burda et al. (2016), arXiv:1509.00519 (IWAE). Rainforth et al. (2018), Tighter
        variational bounds are not necessarily better, arXiv:1802.04537 (CIWAE). Tolstikhin et
        al. (2018), arXiv:1711.01558 (WAE). Tomczak and Welling (2018), arXiv:1705.07120
        (VampPrior).
    """

    networks: Networks
    observation: AbstractLikelihood
    x: Array
    objective: str = eqx.field(static=True)
    beta: float = eqx.field(static=True)
    samples: int = eqx.field(static=True)
    mix: float = eqx.field(static=True)
    pseudo: int = eqx.field(static=True)

    @property
    def num_data(self) -> int:
        return len(self.x)

    def start(self, *, key: PRNGKey) -> Any:
        """Return the weights that the networks have, and some data as pseudo-inputs."""
        rows = jr.choice(key, len(self.x), (self.pseudo,))
        arrays = eqx.filter(self.networks, eqx.is_inexact_array)
        return arrays, self.observation.read(self.x[rows])

    def fitted(self, params: Any) -> tuple[Networks, Array]:
        """Return the networks with these weights, and the pseudo-inputs."""
        rest = eqx.filter(self.networks, eqx.is_inexact_array, inverse=True)
        return eqx.combine(params[0], rest), params[1]

    def log_prior(self, params: Any, z: Array) -> Array:
        """Return the log density of codes `(..., latent)`."""
        networks, pseudo = self.fitted(params)
        if not self.pseudo:
            return _normal(z, jnp.zeros(()), jnp.zeros(()))
        means, log_scales = jnp.split(jax.vmap(networks.encoder)(pseudo), 2, axis=-1)
        each = _normal(z[..., None, :], means, log_scales)
        return logsumexp(each, axis=-1) - math.log(self.pseudo)

    def log_terms(self, params: Any, x: Array, samples: int, *, key: PRNGKey):
        """Return `log p(x | z)`, `log p(z)` and `log q(z | x)`, `(sample, row)` each."""
        networks, _ = self.fitted(params)
        code = jax.vmap(networks.encoder)(self.observation.read(x))
        mean, log_scale = jnp.split(code, 2, axis=-1)
        z = mean + jnp.exp(log_scale) * jr.normal(key, (samples, *mean.shape), mean.dtype)
        law = lambda z: self.observation.distribution(jax.vmap(networks.decoder)(z), {})
        given = jax.vmap(lambda z: law(z).log_prob(x))(z)
        return given, self.log_prior(params, z), _normal(z, mean, log_scale)

    def loss(self, params, rows, *, key):
        x = self.x if rows is None else self.x[rows]
        if self.objective == "wae":
            return self._wasserstein(params, x, key)
        given, prior, own = self.log_terms(params, x, self.samples, key=key)
        elbo = jnp.mean(given + self.beta * (prior - own))
        if self.objective == "elbo":
            return -elbo
        bound = logsumexp(given + prior - own, axis=0) - math.log(self.samples)
        return -self.mix * elbo - (1 - self.mix) * jnp.mean(bound)

    def _wasserstein(self, params, x, key):
        networks, _ = self.fitted(params)
        z = jax.vmap(networks.encoder)(self.observation.read(x))
        output = jax.vmap(networks.decoder)(z)
        given = self.observation.distribution(output, {}).log_prob(x)
        prior = jr.normal(key, z.shape, z.dtype)
        return self.beta * discrepancy(z, prior) - jnp.mean(given)


def _normal(z: Array, mean: Array, log_scale: Array) -> Array:
    each = -0.5 * ((z - mean) * jnp.exp(-log_scale)) ** 2 - log_scale
    return jnp.sum(each - 0.5 * math.log(2 * math.pi), axis=-1)


def discrepancy(a: Array, b: Array) -> Array:
    """Return the squared maximum mean discrepancy of two samples, without bias.

    With the sum over scales s of inverse multiquadratic kernels `C / (C + |z - z'|^2)`,
    `C = 2 d s`, and d the width of a code.

    References:
        Gretton et al. (2012), A kernel two-sample test, JMLR 13, lemma 6.
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
    """An autoencoder with random codes, fitted.

    Attributes:
        problem: What was fitted.
        params: Weights and pseudo-inputs.
        losses: What was minimised, in nats per datum, at some of the steps.
    """

    problem: Variational
    params: Any
    losses: np.ndarray

    def encode(self, x: Any) -> np.ndarray:
        """Return codes (their means), `(row, latent)`."""
        return np.asarray(_encode(self.problem, self.params, jnp.asarray(x)))

    def reconstruct(self, x: Any) -> np.ndarray:
        """Return images of data at the means of their codes."""
        parameter = _decode(self.problem, self.params, jnp.asarray(self.encode(x)))
        return np.asarray(self.problem.observation.image(parameter))

    def log_likelihood(self, x: Any) -> np.ndarray:
        """Return log likelihoods of data at the means of their codes, in nats, by row."""
        parameter = _decode(self.problem, self.params, jnp.asarray(self.encode(x)))
        law = self.problem.observation.law(parameter, {})
        return np.asarray(law.log_prob(jnp.asarray(x)))

    @seeded
    def log_prob(self, x: Any, *, key: PRNGKey, samples: int = 500) -> np.ndarray:
        """Return lower bounds of log densities of data by importance sampling, in nats.

        Args:
            x: Data, rows first.
            key: A typed key.
            samples: Codes for each datum; 1 gives the ELBO, by one draw.

        Raises:
            ValueError: For `"wae"`, whose codes have no law given a datum.
        """
        if self.problem.objective == "wae":
            raise ValueError("`objective` must not be 'wae': its codes have no density.")
        samples = whole("samples", least=1)(samples)
        return np.asarray(_bound(self.problem, self.params, jnp.asarray(x), samples, key))

    @seeded
    def generate(self, num: int, *, key: PRNGKey) -> np.ndarray:
        """Make new images from codes of the prior, without noise."""
        num = whole("num", least=1)(num)
        parameter = _generate(self.problem, self.params, num, key)
        return np.asarray(self.problem.observation.image(parameter))


@remembering
def _encode(problem, params, x):
    networks, _ = problem.fitted(params)
    code = jax.vmap(networks.encoder)(problem.observation.read(x))
    return code if problem.objective == "wae" else jnp.split(code, 2, axis=-1)[0]


@remembering
def _decode(problem, params, z):
    return problem.observation.parameter(jax.vmap(problem.fitted(params)[0].decoder)(z))


@remembering
def _bound(problem, params, x, samples, key):
    def one(pair):
        row, key = pair
        given, prior, own = problem.log_terms(params, row[None], samples, key=key)
        return (logsumexp(given + prior - own, axis=0) - math.log(samples))[0]

    return jax.lax.map(one, (x, jr.split(key, len(x))), batch_size=16)


@remembering
def _generate(problem, params, num, key):
    networks, pseudo = problem.fitted(params)
    width = jax.eval_shape(networks.encoder, problem.observation.read(problem.x[0])).size
    latent = width if problem.objective == "wae" else width // 2
    key_which, key_normal = jr.split(key)
    z = jr.normal(key_normal, (num, latent), problem.x.dtype)
    if problem.pseudo:
        which = jr.randint(key_which, (num,), 0, problem.pseudo)
        code = jax.vmap(networks.encoder)(pseudo)[which]
        mean, log_scale = jnp.split(code, 2, axis=-1)
        z = mean + jnp.exp(log_scale) * z
    return problem.observation.parameter(jax.vmap(networks.decoder)(z))


def variational(
    encoder: Any,
    decoder: Any,
    x: Any,
    *,
    likelihood: AbstractLikelihood | None = None,
    objective: str = "elbo",
    beta: float | int = 1,
    samples: int = 1,
    mix: float | int = 0,
    pseudo: int = 0,
) -> Variational:
    """Return a fit for `fit_variational`, or `whence.train`: an autoencoder with random codes.

    | name | settings |
    | --- | --- |
    | VAE, beta-VAE | `objective="elbo"`, `beta` |
    | IWAE, CIWAE | `objective="iwae"`, `samples`, `mix` |
    | WAE-MMD | `objective="wae"`, `beta` the factor of the discrepancy |
    | VampPrior | `pseudo`, the number of pseudo-inputs |

    Args:
        encoder: From a datum to means and log standard deviations of its code.
        decoder: From a code to what the likelihood reads.
        x: Data, rows first.
        likelihood: One without latents of its own; by default `ContinuousBernoulli()`.
        objective: See `Variational`, as the following.
        beta: Factor of the divergence or discrepancy.
        samples: Codes for each datum.
        mix: Part of the ELBO.
        pseudo: Pseudo-inputs.

    Raises:
        ValueError: If networks, likelihood and data do not fit each other.
    """
    likelihood = ContinuousBernoulli() if likelihood is None else likelihood
    observation = part("likelihood", AbstractLikelihood)(likelihood)
    if observation.priors:
        raise ValueError("`likelihood` must be without latents of its own: give its scale.")
    objective, x = one_of("objective", OBJECTIVES)(objective), jnp.asarray(x)
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"`x` must have rows of data along its first axis; got {x.shape}.")
    observation.check(np.asarray(x))
    networks = Networks(encoder, decoder)
    if objective == "wae":
        check_shapes(networks, observation, x)
        if pseudo:
            raise ValueError("`pseudo` must be 0 for 'wae', whose prior is normal.")
    else:
        # What the decoder reads are the means, half of what the encoder gives.
        half = lambda row: jnp.split(encoder(row), 2)[0]
        check_shapes(Networks(half, decoder), observation, x)
    return Variational(
        networks,
        observation,
        x,
        objective,
        number("beta", least=0)(beta),
        whole("samples", least=1)(samples),
        number("mix", least=0, most=1)(mix),
        whole("pseudo", least=0)(pseudo),
    )


@seeded
def fit_variational(
    problem: Variational, *, key: PRNGKey, fit: Adam | None = None
) -> FittedVariational:
    """Fit an autoencoder with random codes.

    Args:
        problem: What `variational(...)` returned.
        key: A typed key.
        fit: How; by default 2,000 steps of Adam. Few steps are a regularisation: longer
            training of small data over-fits.
    """
    state, trace = run(problem, Adam() if fit is None else fit, key=key)
    return FittedVariational(problem, state.params, trace["loss"])
