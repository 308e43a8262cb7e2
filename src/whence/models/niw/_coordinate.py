"""Quadratic tasks, finitely many: coordinate ascent to the posterior of (mu, Sigma).

With losses `(theta - b_i)' A_i (theta - b_i) / 2` every step has a closed form, and the family
`NIW x prod N(m_i, V_i)` its best member.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...core._convert import whole
from ._law import NIW, ProductNIW


class Ascended(NamedTuple):
    """What coordinate ascent found.

    Attributes:
        law: Posterior of `(mu, Sigma)`; its `predictive` is that of a new task.
        means: Of the weights of each task, `(task, d)`.
        covariances: `(task, d, d)`; of a product variances, `(task, d)`.
        elbo: After each round, in nats up to a constant of the data, `(round,)`.
    """

    law: NIW | ProductNIW
    means: Array
    covariances: Array
    elbo: Array


def coordinate_ascent(
    centres: Any, precisions: Any, prior: NIW | ProductNIW, *, rounds: int = 100
) -> Ascended:
    """Find the posterior of the population of finitely many quadratic tasks.

    Args:
        centres: Minima b_i of the tasks' losses, `(task, d)`.
        precisions: A_i, `(task, d, d)`; for a `ProductNIW` diagonals, `(task, d)`.
        prior: Of `(mu, Sigma)`: a `NIW`, or a `ProductNIW`, which take their own forms.
        rounds: Of ascent.

    Returns:
        The posterior law, those of the tasks, and the bound, which never falls.

    Raises:
        ValueError: If shapes do not fit the prior, or a precision is not positive
            semi-definite.

    References:
        Kim, Hospedales (2024), arXiv:2306.09702, for the family; the updates are those of
        conjugate exponential families.
    """
    if not isinstance(prior, NIW | ProductNIW):
        raise ValueError(f"`prior` must be a `NIW` or a `ProductNIW`; got {prior!r}.")
    centres, precisions = jnp.asarray(centres, float), jnp.asarray(precisions, float)
    tasks, d = centres.shape if centres.ndim == 2 else (0, 0)
    want = (tasks, d, d) if isinstance(prior, NIW) else (tasks, d)
    if not tasks or d != len(prior.mean) or precisions.shape != want:
        raise ValueError(
            f"`centres` must have shape (task, {len(prior.mean)}), and `precisions` "
            f"{'matrices' if isinstance(prior, NIW) else 'diagonals'} for each; got "
            f"{centres.shape} and {precisions.shape}."
        )
    known = np.asarray(precisions)
    least = np.linalg.eigvalsh(known).min() if isinstance(prior, NIW) else known.min()
    if not least >= -1e-6 * np.abs(known).max():
        raise ValueError(
            f"`precisions` must be positive semi-definite; one has the eigenvalue {least:g}."
        )
    run = jax.jit(partial(_ascend, whole("rounds", least=1)(rounds)))
    if isinstance(prior, NIW):
        law, *rest = run(centres, precisions, prior)
        return Ascended(law, *rest)
    each = jax.vmap(run, in_axes=(1, 1, 0))
    law, means, variances, elbo = each(
        centres[..., None], precisions[..., None, None], prior.each
    )
    law = ProductNIW(law.mean[:, 0], law.strength[0], law.scale[:, 0, 0], law.df[0])
    return Ascended(law, means[..., 0].T, variances[..., 0, 0].T, jnp.sum(elbo, axis=0))


def _ascend(rounds, centres, precisions, prior):
    tasks = len(centres)
    strength, df = prior.strength + tasks, prior.df + tasks

    def step(carry, _):
        law = NIW(*carry)
        inverse = law.expected_precision
        covariances = jnp.linalg.inv(precisions + inverse[None])
        pull = jnp.einsum("tij,tj->ti", precisions, centres) + inverse @ law.mean
        means = jnp.einsum("tij,tj->ti", covariances, pull)
        off = means - centres
        misfit = jnp.einsum("ti,tij,tj->", off, precisions, off)
        misfit = (misfit + jnp.einsum("tij,tji->", precisions, covariances)) / 2
        mean = (prior.strength * prior.mean + means.sum(0)) / strength
        gaps, off = means - mean, prior.mean - mean
        scale = covariances.sum(0) + gaps.T @ gaps
        scale = scale + prior.strength * jnp.outer(off, off)
        law = NIW(mean, strength, prior.scale + scale, df)
        divergence = jnp.sum(jax.vmap(law.expected_kl)(means, covariances))
        carry = law.mean, law.strength, law.scale, law.df
        return carry, (misfit + divergence + law.kl(prior), means, covariances)

    start = centres.mean(0), strength, prior.scale * (df / prior.df), df
    last, (bound, means, covariances) = jax.lax.scan(step, start, None, length=rounds)
    return NIW(*last), means[-1], covariances[-1], -bound
