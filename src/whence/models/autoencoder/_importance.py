"""Log densities of data under a generative model, by importance sampling of codes."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from ...core import InferenceWarning, PRNGKey, Scalar, whole
from ...core._key import seeded
from ...posterior._map_draws import over_draws
from ._posterior import checked
from .density._mixture import FittedMixture
from .density._variational import mixture as law_of_codes

NEWTON = 8  # steps towards a mode
LENGTHS = (1.0, 0.5, 0.2, 0.05, 0.01, 0.0)  # of a step, of which the best is taken
WIDTHS = (1.0, 3.0)  # of proposals around a mode, in units of its curvature
FEW = 20  # codes that count: with fewer an error cannot be told


class HeldOut(NamedTuple):
    """Estimated log densities of data, one for each row.

    Attributes:
        log_prob: In nats.
        error: Standard error from the choice of codes, in nats; the logarithm of an unbiased
            estimate is low by about half of its square.
        ess: Codes that count, `(sum w)^2 / sum w^2`. Where they are few `error` is too small.
    """

    log_prob: np.ndarray
    error: np.ndarray
    ess: np.ndarray


def mode(
    log_density: Callable[[Array], Scalar], start: Float[Array, " latent"], floor: Scalar
) -> tuple[Array, Array]:
    """Return a point of large density near `start`, and a square root of its covariance.

    Newton's method with absolute eigenvalues of the Hessian, at least `floor`; each step is
    the best of some lengths, none among them. The root is triangular, of the inverse.
    """

    def curvature(z):
        values, vectors = jnp.linalg.eigh(-jax.hessian(log_density)(z))
        return jnp.maximum(jnp.abs(values), floor), vectors

    def step(_, z):
        values, vectors = curvature(z)
        move = vectors @ (vectors.T @ jax.grad(log_density)(z) / values)
        tried = z + jnp.asarray(LENGTHS, z.dtype)[:, None] * move
        found = jax.vmap(log_density)(tried)
        return tried[jnp.argmax(jnp.where(jnp.isnan(found), -jnp.inf, found))]

    z = jax.lax.fori_loop(0, NEWTON, step, start)
    values, vectors = curvature(z)
    return z, jnp.linalg.cholesky((vectors / values) @ vectors.T)


def _importance(target, batched, x, samples):
    """Return the logs of the mean and of the mean square of weights, by row.

    A weight is `p(x | z) p(z) / q(z)`. q is a mixture of the density of codes itself, so that
    no weight is larger than the likelihood times the number of parts, and of Student-t laws
    around two modes of `p(x | z) p(z)`, of its curvature and wider. The modes are those near
    the row's code and near the likeliest of the codes drawn from their density.
    """
    position, factors, key = batched
    draw, x = target.constrain(position), jnp.asarray(x)
    decoder, starts = draw.network.module.decoder, draw.encode(x)
    law_of = lambda z: draw.observation.distribution(jax.vmap(decoder)(z), draw.noise)
    prior: Any = law_of_codes(factors)
    dim, widths = starts.shape[1], jnp.asarray(WIDTHS, starts.dtype)
    own = jnp.diagonal(factors.scatters, axis1=1, axis2=2) / factors.dofs[:, None]
    floor = 1 / jnp.max(own + jnp.var(factors.means, axis=0))

    def one(row):
        datum, start, key = row
        given: Any = lambda z: law_of(z).log_prob(
            jnp.broadcast_to(datum, (len(z), *datum.shape))
        )
        log_density = lambda z: given(z[None])[0] + prior.log_prob(z)
        key_prior, *keys = jr.split(key, 3)
        drawn: Any = prior.sample(key_prior, (samples,))
        best = drawn[jnp.argmax(given(drawn))]
        codes, near = [drawn], []
        for begin, key in zip((start, best), keys, strict=True):
            centre, root = mode(log_density, begin, floor)
            centres, roots = jnp.stack([centre] * len(WIDTHS)), widths[:, None, None] * root
            law: Any = dist.MultivariateStudentT(jnp.full_like(widths, 5.0), centres, roots)
            codes.append(law.sample(key, (samples,)).reshape(-1, dim))
            near.append(law)
        z = jnp.concatenate(codes)
        own = [prior.log_prob(z)[None], *(law.log_prob(z[:, None]).T for law in near)]
        own = jnp.concatenate(own)
        proposal = logsumexp(own, axis=0) - math.log(len(own))
        log_weights = given(z) + prior.log_prob(z) - proposal
        mean = lambda v: logsumexp(v) - math.log(len(z))
        return mean(log_weights), mean(2 * log_weights)

    keys = jr.split(jr.wrap_key_data(key), len(x))
    return jax.lax.map(one, (x, starts, keys), batch_size=8)


@seeded
def importance_log_prob(
    posterior: Any, mixture: FittedMixture, x: Any, *, key: PRNGKey, samples: int = 100
) -> HeldOut:
    """Estimate the log density of data under the generative model.

    `log mean_w int p(x | decoder(z; w)) p(z) dz` with the mixture as p(z), by importance
    sampling around modes of the integrand. Unlike `log_likelihood` it does not reward copying.

    Args:
        posterior: Of a `BayesianAutoencoder`.
        mixture: One for each draw of the weights.
        x: Data, rows first.
        key: A typed key.
        samples: Codes from each of the five parts of the proposal.

    Returns:
        Log densities with their errors; a warning says for how many rows too few codes count.

    References:
        Burda, Grosse and Salakhutdinov (2016), arXiv:1509.00519. Owen and Zhou (2000), Safe
        and effective importance sampling, doi:10.1080/01621459.2000.10473909.
    """
    _, x = checked(posterior, x)
    if not mixture.batched:
        raise ValueError(
            "`mixture` must be fitted to the codes of each draw, `encode(posterior, x)`; got "
            "one fitted to averaged codes."
        )
    samples = whole("samples", least=2)(samples)
    lead = posterior.num_chains, posterior.num_draws
    keys = np.asarray(jr.key_data(jr.split(key, lead)))
    batched = (posterior.sample.positions, jax.tree.map(np.asarray, mixture.factors), keys)
    first, second = over_draws(posterior.target, _importance, batched, x, samples)
    draws, each = lead[0] * lead[1], samples * (1 + 2 * len(WIDTHS))
    total = logsumexp(first, axis=(0, 1))
    # Of the sum over draws of means of `each` weights: squared error over the squared sum.
    square = np.exp(second - 2 * total) - np.exp(2 * (first - total))
    error = np.sqrt(square.sum(axis=(0, 1)) / each)
    ess = each * np.exp(2 * total - logsumexp(second, axis=(0, 1)))
    few = int((ess < FEW).sum())
    if few:
        warnings.warn(
            f"For {few} of {len(x)} rows fewer than {FEW} codes count: their densities may be "
            f"far too small, and the errors are too. Use more `samples` than {samples}.",
            InferenceWarning,
            stacklevel=3,
        )
    return HeldOut(np.asarray(total) - math.log(draws), np.asarray(error), np.asarray(ess))
