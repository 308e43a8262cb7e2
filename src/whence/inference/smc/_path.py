"""Where tempering starts, and the path of densities from there to the target.

Every path here is geometric: log density = log_base + temperature * log_tilt, at
temperature 0 a normalised density that can be drawn from, at 1 the target.

- prior: log_base = log prior, log_tilt = log likelihood. Needs an `AbstractDataTarget`
  with a method `sample_prior_position(key=key)` that draws the prior in unconstrained
  space, and raises `ValueError` or `NotImplementedError` where it cannot (an improper
  prior).
- reference: log_base = log N(mean, diag(scale^2)), log_tilt = log density - log_base,
  that is (1 - temperature) log_base + temperature log density. Any target has it. The
  Gaussian is fitted to positions from `target.init`; it need not cover the target, since
  the particles move on the way, but the way is shorter if it does.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ...core._flat import flat_view
from ...core._target import AbstractDataTarget, AbstractTarget, SamplesPrior
from ...core._types import Position, PRNGKey, Scalar
from ._weights import wide_dtype

PATHS = ("auto", "prior", "reference")
_LOG_2PI = 1.8378770664093453


class Reference(eqx.Module):
    """A Gaussian with independent coordinates."""

    mean: Float[Array, " dim"]
    scale: Float[Array, " dim"]

    def log_prob(self, x: Float[Array, " dim"]) -> Scalar:
        """Return the normalised log density in nats, in the widest dtype."""
        z = ((x - self.mean) / self.scale).astype(wide_dtype())
        log_scale = jnp.log(self.scale.astype(wide_dtype()))
        return -jnp.sum(0.5 * z**2 + log_scale + 0.5 * _LOG_2PI)


def choose_path(target: AbstractTarget, path: str) -> str:
    """Return `"prior"` or `"reference"`: what `"auto"` means for this target."""
    if path == "reference":
        return path
    obstacle = no_prior(target)
    if obstacle and path == "prior":
        raise ValueError(
            f"`path='prior'` needs a target whose prior can be drawn from: {obstacle}. Use "
            "`path='reference'`, which starts from a Gaussian fitted to initial positions."
        )
    return "reference" if obstacle else "prior"


def no_prior(target: AbstractTarget) -> str:
    """Return why a target cannot draw from its prior; nothing if it can."""
    name = type(target).__name__
    if not isinstance(target, AbstractDataTarget):
        return f"{name} does not tell prior and likelihood apart (no `AbstractDataTarget`)"
    if not isinstance(target, SamplesPrior):
        return f"{name} has no method `sample_prior_position(*, key)`"
    try:
        jax.eval_shape(lambda key: target.sample_prior_position(key=key), jr.key(0))
    except (ValueError, NotImplementedError) as error:
        return f"{name} says {str(error).rstrip('.')!r}"
    return ""


def draw_initial(
    target: AbstractTarget, path: str, num: int, *, key: PRNGKey
) -> tuple[Float[Array, "particle dim"], Reference | None]:
    """Draw from the density at temperature 0.

    Returns:
        Flat positions, and for `"reference"` the Gaussian they come from.
    """
    key_fit, key_draw = jr.split(key)
    if path == "prior":
        return flatten(
            jax.vmap(lambda k: _draw_prior(target, k))(jr.split(key_draw, num))
        ), None
    starts = flatten(jax.vmap(lambda k: target.init(key=k))(jr.split(key_fit, num)))
    spread = jnp.std(starts, axis=0)
    # A coordinate that always starts at the same value says nothing of its scale.
    reference = Reference(jnp.mean(starts, axis=0), jnp.where(spread > 0, spread, 1.0))
    noise = jr.normal(key_draw, starts.shape, starts.dtype)
    return reference.mean[None] + reference.scale[None] * noise, reference


def log_terms(
    target: AbstractTarget, reference: Reference | None, x: Float[Array, " dim"]
) -> tuple[Scalar, Scalar]:
    """Return `(log_base, log_tilt)` of the path at one flat position, in nats."""
    position = unflatten(target, x)
    if reference is None:
        log_prior = target.log_prior(position)  # pyright: ignore[reportAttributeAccessIssue]
        rows = target.log_likelihood(position)  # pyright: ignore[reportAttributeAccessIssue]
        return log_prior.astype(wide_dtype()), jnp.sum(rows, dtype=wide_dtype())
    log_base = reference.log_prob(x)
    return log_base, target.log_density(position).astype(wide_dtype()) - log_base


def flatten(positions: Position) -> Float[Array, "particle dim"]:
    """Ravel a batch of positions into rows."""
    return jax.vmap(lambda position: ravel_pytree(position)[0])(positions)


def unflatten(target: AbstractTarget, x: Float[Array, " dim"]) -> Position:
    """Undo `flatten` for one row."""
    return flat_view(target)[1](x)


def _draw_prior(target: Any, key: PRNGKey) -> Position:
    return target.sample_prior_position(key=key)
