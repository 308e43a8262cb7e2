"""What is asked of a posterior of autoencoders: codes, images, scores, new data."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array

from ...core._convert import one_of, whole
from ...core._key import seeded
from ...core._types import PRNGKey
from ...posterior import Posterior
from ...posterior._map_draws import over_draws
from ._model import BayesianAutoencoder
from .density._mixture import FittedMixture, log_prob, sample, spread

MODES = ("mixture", "plugin")
PAIRINGS = ("per_sample", "average")
BLOCK_BYTES = 2**27  # of outputs of all draws that are computed at once


def _checked(posterior: Any, x: Any = None) -> tuple[BayesianAutoencoder, Any]:
    model = getattr(getattr(posterior, "target", None), "model", None)
    if not isinstance(posterior, Posterior) or not isinstance(model, BayesianAutoencoder):
        raise ValueError(
            "`posterior` must be one of a BayesianAutoencoder, with its target; got "
            f"{posterior!r}."
        )
    return model, (None if x is None else np.asarray(model.check_data(x)))


def _blocks(posterior: Posterior, x: np.ndarray) -> list[np.ndarray]:
    each = x[0].size * 8 * posterior.num_chains * posterior.num_draws
    size = max(1, min(len(x), BLOCK_BYTES // each))
    return [x[i : i + size] for i in range(0, len(x), size)]


def _rows(posterior: Posterior, function: Any, x: np.ndarray) -> np.ndarray:
    """Return `function` of all draws and rows, `(chain, draw, row, ...)`."""
    positions = posterior.sample.positions
    parts = [
        over_draws(posterior.target, function, positions, block)
        for block in _blocks(posterior, x)
    ]
    return np.concatenate(parts, axis=2)


def _encode(target, position, x):
    return target.constrain(position).encode(x)


def _parameter(target, position, x):
    draw = target.constrain(position)
    return draw.observation.parameter(draw.network(draw.observation.read(jnp.asarray(x))))


def _log_prob(target, position, x):
    return target.constrain(position).likelihood(jnp.asarray(x)).log_prob(jnp.asarray(x))


def _noise(target, position):
    return target.constrain(position).noise


def encode(posterior: Any, x: Any, *, pairing: str = "per_sample") -> np.ndarray:
    """Return the codes of data.

    Two draws of the weights from different modes (another chain, a long run) give codes that
    a permutation or rotation of the latent space relates: their average means nothing, and a
    decoder is to be given the codes of its own encoder.

    Args:
        posterior: Of a `BayesianAutoencoder`.
        x: Data, rows first.
        pairing: `"per_sample"` for the codes under each draw; `"average"`, as published, for
            their average, only sensible within one mode.

    Returns:
        Codes `(chain, draw, row, latent)`, or `(row, latent)`.

    Raises:
        ValueError: If data do not fit the model.
    """
    _, x = _checked(posterior, x)
    codes = _rows(posterior, _encode, x)
    return codes if one_of("pairing", PAIRINGS)(pairing) == "per_sample" else _mean(codes)


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=(0, 1))


def reconstruct(posterior: Any, x: Any) -> np.ndarray:
    """Return images of data: the likelihood's parameter, averaged over draws.

    For `ContinuousBernoulli` the parameter is the rate, as published, not the mean of the law.

    Args:
        posterior: Of a `BayesianAutoencoder`.
        x: Data, rows first.

    Returns:
        An array of the shape of `x`.
    """
    model, x = _checked(posterior, x)
    averaged = _mean(_rows(posterior, _parameter, x))
    return np.asarray(model.observation.image(jnp.asarray(averaged)))


def log_likelihood(posterior: Any, x: Any, *, mode: str = "mixture") -> np.ndarray:
    """Return the log likelihood of data given themselves as read, in nats.

    It rewards copying: it is the likelihood of reconstructions, not of a generative model.
    `importance_log_prob` is that.

    Args:
        posterior: Of a `BayesianAutoencoder`.
        x: Data, rows first.
        mode: `"mixture"`, the log of the average density over draws; or `"plugin"`, as
            published, the log density at the averaged parameter.

    Returns:
        One number for each row.

    References:
        Tran et al. (2021), arXiv:2106.06245 (`"plugin"`, as in the authors' code).
    """
    mode = one_of("mode", MODES)(mode)
    model, x = _checked(posterior, x)
    if mode == "mixture":
        each = _rows(posterior, _log_prob, x)
        return np.asarray(
            logsumexp(each, axis=(0, 1)) - math.log(each.shape[0] * each.shape[1])
        )
    parameter = jnp.asarray(_mean(_rows(posterior, _parameter, x)))
    noise = over_draws(posterior.target, _noise, posterior.sample.positions)
    noise = {name: jnp.asarray(_mean(value)) for name, value in noise.items()}
    return np.asarray(model.observation.law(parameter, noise).log_prob(jnp.asarray(x)))


def _decode(target, batched):
    position, codes = batched
    draw = target.constrain(position)
    return draw.observation.parameter(draw.decode(codes))


@seeded
def generate(posterior: Any, mixture: FittedMixture, num: int, *, key: PRNGKey) -> np.ndarray:
    """Make new images from a density of codes.

    With one mixture for each draw of the weights (fitted to `encode(posterior, x)`), each
    image comes from a draw, its mixture and its decoder. With a single mixture, fitted to
    averaged codes, each code is decoded by all draws and the parameters averaged, as
    published.

    Args:
        posterior: Of a `BayesianAutoencoder`.
        mixture: What `DirichletMixture().fit(codes)` returned.
        num: How many.
        key: A typed key.

    Returns:
        Images, `(num, ...)`, of the likelihood's parameter, without noise.

    Raises:
        ValueError: If the mixture was fitted to codes of other draws.
    """
    model, _ = _checked(posterior)
    num, positions = whole("num", least=1)(num), posterior.sample.positions
    lead = posterior.num_chains, posterior.num_draws
    if not mixture.batched:
        codes = mixture.sample(num, key=key)
        codes = jnp.broadcast_to(codes, (*lead, *codes.shape))
        made = _mean(over_draws(posterior.target, _decode, (positions, np.asarray(codes))))
        return np.asarray(model.observation.image(jnp.asarray(made)))
    if mixture.factors.a.shape[:2] != lead:
        raise ValueError(
            f"`mixture` must have one component for each of the {lead} draws of the posterior;"
            f" got {mixture.factors.a.shape[:2]}."
        )
    key_codes, key_order = jr.split(key)
    each = -(-num // (lead[0] * lead[1]))
    codes = np.asarray(mixture.sample(each, key=key_codes))
    made = over_draws(posterior.target, _decode, (positions, codes))
    made = np.asarray(model.observation.image(jnp.asarray(made.reshape(-1, *made.shape[3:]))))
    order = np.asarray(jr.permutation(key_order, len(made)))
    return made[order[:num]]


class Oddness(NamedTuple):
    """Scores of how odd data are: the larger, the odder. One number for each row.

    Attributes:
        unlikely: Minus the log likelihood, averaged over draws by mixture, in nats.
        disputed: Variance over draws of a pixel's parameter, summed over pixels.
        unstable: Variance over draws of the log likelihood, in nats squared; its part in the
            widely applicable information criterion.
        far: Minus the log density of codes under the mixture, in nats; None without one.
    """

    unlikely: np.ndarray
    disputed: np.ndarray
    unstable: np.ndarray
    far: np.ndarray | None


def oddness(posterior: Any, x: Any, mixture: FittedMixture | None = None) -> Oddness:
    """Score how odd data are to a posterior, to find those unlike the data of the fit.

    Scores are to be compared with those of data that are known to be ordinary.

    Args:
        posterior: Of a `BayesianAutoencoder`.
        x: Data, rows first.
        mixture: A density of codes.

    References:
        Daxberger and Hernández-Lobato (2019), Bayesian variational autoencoders for
        unsupervised out-of-distribution detection, arXiv:1912.05651.
        Yong and Brintrup (2022), Bayesian autoencoders with uncertainty quantification,
        arXiv:2202.12637.
    """
    _, x = _checked(posterior, x)
    each = _rows(posterior, _log_prob, x)
    parameter = _rows(posterior, _parameter, x)
    count = each.shape[0] * each.shape[1]
    unlikely = math.log(count) - np.asarray(logsumexp(each, axis=(0, 1)))
    disputed = parameter.var(axis=(0, 1)).reshape(len(x), -1).sum(axis=1)
    far = None
    if mixture is not None:
        pairing = "per_sample" if mixture.batched else "average"
        density = mixture.log_prob(encode(posterior, x, pairing=pairing))
        axes = (0, 1) if mixture.batched else ()
        far = -np.asarray(logsumexp(density, axis=axes) if axes else density)
        far = far + (math.log(count) if mixture.batched else 0.0)
    return Oddness(unlikely, disputed, each.var(axis=(0, 1)), far)


def _importance(target, batched, x, samples, spreads):
    position, factors, key = batched
    draw = target.constrain(position)
    return importance(
        lambda z: draw.observation.distribution(
            jax.vmap(draw.network.module.decoder)(z), draw.noise
        ),
        draw.encode(x),
        factors,
        jnp.asarray(x),
        samples,
        spreads,
        key=jr.wrap_key_data(key),
    )


def importance(
    law_of: Any,
    centres: Array,
    factors: Any,
    x: Array,
    samples: int,
    spreads: tuple[float, ...],
    *,
    key: PRNGKey,
) -> Array:
    """Return log of `sum p(x | z) p(z) / q(z)` over draws of z from q, for each row; traced.

    q is a mixture with known density, so that each weight is bounded by one of its parts: the
    density of codes itself, and Gaussians around a row's code, of standard deviations that
    are fractions of that of all codes. In each part as many draws are made.

    Args:
        law_of: From codes to the law of data.
        centres: Codes of the rows.
        factors: Of the density of codes.
        x: Data.
        samples: Draws from each part.
        spreads: The fractions.
        key: A typed key.
    """
    scale = spread(factors)
    dim, parts = centres.shape[1], len(spreads) + 1
    widths = jnp.asarray(spreads, centres.dtype)[:, None] * scale

    def one(pair):
        row, centre, key = pair
        key_prior, key_near = jr.split(key)
        noise = jr.normal(key_near, (len(spreads), samples, dim), centres.dtype)
        near = (centre + widths[:, None] * noise).reshape(-1, dim)
        z = jnp.concatenate([sample(factors, samples, key=key_prior), near])
        prior = log_prob(z, factors)
        gap = (z[None] - centre) / widths[:, None]
        normal = -0.5 * (gap**2).sum(-1) - jnp.log(widths).sum(-1)[:, None]
        normal -= 0.5 * dim * math.log(2 * math.pi)
        proposal = logsumexp(jnp.concatenate([prior[None], normal]), axis=0) - math.log(parts)
        law = law_of(z)
        likelihood = law.log_prob(jnp.broadcast_to(row, (len(z), *row.shape)))
        return logsumexp(likelihood + prior - proposal) - math.log(len(z))

    return jax.lax.map(one, (x, centres, jr.split(key, len(x))), batch_size=8)


@seeded
def importance_log_prob(
    posterior: Any,
    mixture: FittedMixture,
    x: Any,
    *,
    key: PRNGKey,
    samples: int = 500,
    spreads: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3),
) -> np.ndarray:
    """Estimate the log density of data under the generative model, in nats.

    `log mean_w int p(x | decoder(z; w)) p(z) dz` with the mixture as p(z), by importance
    sampling around the code of each datum. Unlike `log_likelihood` it does not reward copying.
    The estimate is unbiased on the scale of the density, and so is low on average on this one.

    Args:
        posterior: Of a `BayesianAutoencoder`.
        mixture: One for each draw of the weights.
        x: Data, rows first.
        key: A typed key.
        samples: Codes from each part of the proposal.
        spreads: Standard deviations of proposals, in units of that of all codes.

    Returns:
        One number for each row.

    Raises:
        ValueError: If there is not a mixture for each draw.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders,
        arXiv:1509.00519.
    """
    _, x = _checked(posterior, x)
    if not mixture.batched:
        raise ValueError(
            "`mixture` must be fitted to the codes of each draw, `encode(posterior, x)`; got "
            "one fitted to averaged codes."
        )
    samples = whole("samples", least=1)(samples)
    positions = posterior.sample.positions
    lead = posterior.num_chains, posterior.num_draws
    keys = np.asarray(jr.key_data(jr.split(key, lead)))
    batched = (positions, jax.tree.map(np.asarray, mixture.factors), keys)
    each = over_draws(posterior.target, _importance, batched, x, samples, spreads)
    return np.asarray(logsumexp(each, axis=(0, 1)) - math.log(lead[0] * lead[1]))
