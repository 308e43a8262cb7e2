"""What is asked of a posterior of autoencoders: codes, images, scores, new data."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import logsumexp

from ...core import PRNGKey, one_of, whole
from ...core._key import seeded
from ...posterior import Posterior
from ...posterior._map_draws import over_draws
from ._model import BayesianAutoencoder
from .density._mixture import FittedMixture

BLOCK_BYTES = 2**27  # of outputs of all draws that are computed at once


def checked(posterior: Any, x: Any = None) -> tuple[BayesianAutoencoder, Any]:
    """Return the model of a posterior, and data as an array; `ValueError` if they are not."""
    model = getattr(getattr(posterior, "target", None), "model", None)
    if not isinstance(posterior, Posterior) or not isinstance(model, BayesianAutoencoder):
        raise ValueError(
            "`posterior` must be one of a BayesianAutoencoder, with its target; got "
            f"{posterior!r}."
        )
    return model, (None if x is None else np.asarray(model.check_data(x)))


def _rows(posterior: Posterior, function: Any, x: np.ndarray) -> np.ndarray:
    """Return `function` of all draws and rows, `(chain, draw, row, ...)`."""
    each = x[0].size * 8 * posterior.num_chains * posterior.num_draws
    size = max(1, BLOCK_BYTES // each)
    blocks = [x[i : i + size] for i in range(0, len(x), size)]
    call = lambda block: over_draws(
        posterior.target, function, posterior.sample.positions, block
    )
    return np.concatenate([call(block) for block in blocks], axis=2)


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
    """Return the codes of data, `(chain, draw, row, latent)`.

    Two draws of the weights from different modes (another chain, a long run) give codes that
    a permutation or rotation of the latent space relates: their average means nothing, and a
    decoder is to be given the codes of its own encoder.

    Args:
        posterior: Of a `BayesianAutoencoder`.
        x: Data, rows first.
        pairing: `"per_sample"` for the codes under each draw; `"average"`, as published, for
            their average `(row, latent)`, only sensible within one mode.
    """
    apart = one_of("pairing", ("per_sample", "average"))(pairing) == "per_sample"
    codes = _rows(posterior, _encode, checked(posterior, x)[1])
    return codes if apart else _mean(codes)


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=(0, 1))


def _log_mean(values: np.ndarray) -> np.ndarray:
    return np.asarray(logsumexp(values, axis=(0, 1))) - math.log(values[:, :, 0].size)


def reconstruct(posterior: Any, x: Any) -> np.ndarray:
    """Return images of data: the likelihood's parameter, averaged over draws.

    For `ContinuousBernoulli` the parameter is the rate, as published, not the mean of the law.
    """
    model, x = checked(posterior, x)
    averaged = _mean(_rows(posterior, _parameter, x))
    return np.asarray(model.observation.image(jnp.asarray(averaged)))


def log_likelihood(posterior: Any, x: Any, *, mode: str = "mixture") -> np.ndarray:
    """Return the log likelihood of each row given itself as read, in nats.

    It rewards copying: it is the likelihood of reconstructions, not of a generative model.
    `importance_log_prob` is that.

    Args:
        posterior: Of a `BayesianAutoencoder`.
        x: Data, rows first.
        mode: `"mixture"`, the log of the average density over draws; or `"plugin"`, the log
            density at the averaged parameter, as in the code of Tran et al. (2021),
            arXiv:2106.06245.
    """
    mode = one_of("mode", ("mixture", "plugin"))(mode)
    model, x = checked(posterior, x)
    if mode == "mixture":
        return _log_mean(_rows(posterior, _log_prob, x))
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
    """Make new images, of the likelihood's parameter without noise, from a density of codes.

    With one mixture for each draw of the weights (fitted to `encode(posterior, x)`), each
    image comes from a draw, its mixture and its decoder. With a single mixture, fitted to
    averaged codes, each code is decoded by all draws and the parameters averaged, as
    published.

    Args:
        posterior: Of a `BayesianAutoencoder`.
        mixture: What `DirichletMixture().fit(codes)` returned.
        num: How many.
        key: A typed key.

    Raises:
        ValueError: If the mixture was fitted to codes of other draws.
    """
    model, _ = checked(posterior)
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
    made = jr.permutation(key_order, jnp.asarray(made.reshape(-1, *made.shape[3:])))
    return np.asarray(model.observation.image(made[:num]))


class Oddness(NamedTuple):
    """Scores of how odd data are: the larger, the odder. One number for each row.

    Attributes:
        unlikely: Minus the log likelihood, averaged over draws by mixture, in nats.
        disputed: Variance over draws of a pixel's parameter, summed over pixels.
        unstable: Variance over draws of the log likelihood, in nats squared.
        far: Minus the log density of codes under the mixture, in nats; None without one.
    """

    unlikely: np.ndarray
    disputed: np.ndarray
    unstable: np.ndarray
    far: np.ndarray | None


def oddness(posterior: Any, x: Any, mixture: FittedMixture | None = None) -> Oddness:
    """Score how odd data are to a posterior, beside data that are known to be ordinary.

    Args:
        posterior: Of a `BayesianAutoencoder`.
        x: Data, rows first.
        mixture: A density of codes.

    References:
        Daxberger and Hernández-Lobato (2019), arXiv:1912.05651. Yong and Brintrup (2022),
        Bayesian autoencoders with uncertainty quantification, arXiv:2202.12637.
    """
    _, x = checked(posterior, x)
    each, parameter = (_rows(posterior, f, x) for f in (_log_prob, _parameter))
    disputed = parameter.var(axis=(0, 1)).reshape(len(x), -1).sum(axis=1)
    far = None
    if mixture is not None:
        pairing = "per_sample" if mixture.batched else "average"
        density = np.asarray(mixture.log_prob(encode(posterior, x, pairing=pairing)))
        far = -_log_mean(density if mixture.batched else density[None, None])
    return Oddness(-_log_mean(each), disputed, each.var(axis=(0, 1)), far)
