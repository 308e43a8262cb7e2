"""`bridge_sampling()`: the evidence from draws of any engine."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.special import logsumexp

from ..core._convert import part
from ..core._flat import flat_view
from ..core._key import seeded
from ..core._types import PRNGKey
from ..diagnostics import mcse
from ._map_draws import over_draws
from ._posterior import Posterior

_MOST_ITERATIONS = 1_000


class Evidence(NamedTuple):
    """A log evidence.

    Attributes:
        log_evidence: In nats.
        error: Its standard error, in nats.
    """

    log_evidence: float
    error: float


@seeded
def bridge_sampling(posterior: Posterior, *, key: PRNGKey) -> Evidence:
    """Estimate the log evidence from draws of a posterior.

    A normal law is fitted, in unconstrained space, to the first half of each chain. The second
    halves and as many draws of that law meet in the optimal bridge between the two densities.
    The error counts the autocorrelation of the chains; it knows nothing of modes that no chain
    has found, and is large where the posterior is far from normal.

    Args:
        posterior: With its target. Weighted draws are resampled first, and their error is
            then that of chains.
        key: A typed key.

    Returns:
        The log evidence and its standard error.

    Raises:
        ValueError: If there are too few draws, or they are of no sample.

    References:
        Meng and Wong (1996), Statistica Sinica 6, 831-860.
        Gronau, Sarafoglou, Matzke, Ly, Boehm, Marsman, Leslie, Forster, Wagenmakers and
        Steingroever (2017), A tutorial on bridge sampling, doi:10.1016/j.jmp.2017.09.005.
        Frühwirth-Schnatter (2004), the error, doi:10.1111/j.1368-423X.2004.00125.x.
    """
    part("posterior", Posterior)(posterior)
    if posterior.sample.method not in ("mcmc", "smc", "exact"):
        raise ValueError(
            "`posterior` must hold draws of the posterior itself; got those of "
            f"{posterior.engine} ({posterior.sample.method})."
        )
    key_resample, key_draw = jr.split(key)
    if posterior.log_weights is not None:
        number = posterior.num_chains * posterior.num_draws
        posterior = posterior.resample(number, key=key_resample)
        order = np.random.default_rng(np.asarray(jr.key_data(key_resample))).permutation(number)
        flat = _flatten(posterior.sample.positions)[:, order]  # copies apart from each other
    else:
        flat = _flatten(posterior.sample.positions)
    chains, draws, dim = flat.shape
    half = draws // 2
    fitted, rest = flat[:, :half].reshape(-1, dim), flat[:, half:]
    if len(fitted) < 10 * dim or half < 4:
        raise ValueError(
            f"Bridge sampling needs at least {20 * dim} draws for {dim} dimensions; got "
            f"{chains * draws}."
        )
    mean, cov = fitted.mean(0), np.atleast_2d(np.cov(fitted.T))
    root = np.linalg.cholesky(cov)
    noise = np.asarray(jr.normal(key_draw, (chains, draws - half, dim)), np.float64)
    proposed = mean + noise @ root.T

    def log_ratio(x):
        white = np.linalg.solve(root, (x - mean).reshape(-1, dim).T).T.reshape(x.shape)
        log_det = np.log(np.diag(root)).sum() + 0.5 * dim * np.log(2 * np.pi)
        logs = np.asarray(
            over_draws(posterior.target, _log_density, jnp.asarray(x)), np.float64
        )
        logs = np.where(np.isnan(logs), -np.inf, logs)
        return logs + 0.5 * (white**2).sum(-1) + log_det

    at_draws, at_proposed = log_ratio(rest), log_ratio(proposed)
    # Draws of chains count as many as they are worth in the optimal bridge.
    worth = at_draws.var() / float(mcse(at_draws).mean) ** 2
    ess = min(worth, at_draws.size) if worth >= 1 else 1.0
    total = ess + at_proposed.size
    share = np.log(ess / total), np.log(at_proposed.size / total)
    log_z = float(np.median(at_draws))
    for _ in range(_MOST_ITERATIONS):
        up = at_proposed - np.logaddexp(share[0] + at_proposed, share[1] + log_z)
        down = -np.logaddexp(share[0] + at_draws, share[1] + log_z)
        new = float(logsumexp(up) - np.log(up.size) - logsumexp(down) + np.log(down.size))
        if abs(new - log_z) < 1e-10:
            break
        log_z = new
    top, bottom = np.exp(up - up.max()), np.exp(down - down.max())
    variance = top.var() / top.mean() ** 2 / top.size
    variance += (float(mcse(bottom).mean) / bottom.mean()) ** 2
    return Evidence(log_z, float(np.sqrt(variance)))


def _flatten(positions: Any) -> np.ndarray:
    one = lambda position: ravel_pytree(position)[0]
    batched = jax.tree.map(jnp.asarray, positions)
    return np.asarray(jax.vmap(jax.vmap(one))(batched), np.float64)


def _log_density(target: Any, x: Any) -> Any:
    """Return the log density at a flat position."""
    zeros, unflatten = flat_view(target)
    return target.log_density(unflatten(x.astype(zeros.dtype)))
