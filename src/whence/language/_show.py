"""Models as HTML, with their priors in words."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ..core._dtype import relaxed
from ..core._show import axes_text, text_of
from ..diagnostics._html import block, paragraph, table
from ._latent import UNDRAWN
from ._sites import Prior, walk


def priors_in_words(model: Any) -> dict[str, str]:
    """Return the prior of each latent in words, by path."""
    return {name: text for name, text, *_ in _latents(model)}


def model_html(model: Any) -> str:
    """Return the latents of a model as HTML."""
    title = type(model).__name__
    try:
        rows = _latents(model)
    except (ValueError, TypeError) as error:  # labels are missing, or a batch of draws
        return block(paragraph(repr(model)), paragraph(str(error)), title=title)
    return block(table(("latent", "prior", "axes", ""), rows), title=title)


def _latents(model: Any) -> list[tuple[str, str, str, str]]:
    found: list[tuple[str, str, str, str]] = []

    @relaxed()
    def choose(prior: Prior, value):
        plain = prior.value_prior
        while isinstance(plain, dist.ExpandedDistribution | dist.Independent):
            plain = plain.base_dist
        how = "fixed" if value is not UNDRAWN else "noncentered" * prior.spec.noncentered
        axes = axes_text(prior.shape, prior.dims)
        found.append((prior.name, text_of(plain), axes, how))
        if value is not UNDRAWN:
            return jnp.broadcast_to(value, prior.shape)
        return prior.forward(prior.bijector(jnp.zeros(prior.unconstrained_shape)))

    jax.eval_shape(lambda: walk(model, choose) and None)
    return found
