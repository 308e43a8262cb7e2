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

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ...core._convert import Converter, number
from ...core._flat import flat_view
from ...core._target import AbstractDataTarget, AbstractTarget, SamplesPrior
from ...core._types import Position, PRNGKey, Scalar
from ._weights import wide_dtype

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


def _numbers(name: str, **rule: Any) -> Converter:
    one = number(name, **rule)
    return lambda v: v if v is None else tuple(map(one, np.ravel(v).tolist()))


class AbstractPath(eqx.Module):
    """Where tempering starts."""

    @abc.abstractmethod
    def draw(
        self, target: AbstractTarget, num: int, *, key: PRNGKey
    ) -> tuple[Float[Array, "particle dim"], Reference | None]:
        """Draw from the density at temperature 0.

        Returns:
            Flat positions, and the Gaussian they come from; None if that is the prior.
        """


class PriorPath(AbstractPath):
    """From the prior: the tilt is the likelihood."""

    def draw(self, target: Any, num: int, *, key: PRNGKey):
        draw = lambda k: target.sample_prior_position(key=k)
        return flatten(jax.vmap(draw)(jr.split(key, num))), None


class ReferencePath(AbstractPath):
    """From a Gaussian with independent coordinates, of flat unconstrained positions.

    Attributes:
        mean: Numbers, one for each coordinate or for all; by default the mean of initial
            positions of the target.
        scale: Standard deviations, likewise.
    """

    mean: Any = eqx.field(default=None, static=True, converter=_numbers("mean"))
    scale: Any = eqx.field(default=None, static=True, converter=_numbers("scale", above=0))

    def draw(self, target: AbstractTarget, num: int, *, key: PRNGKey):
        key_fit, key_draw = jr.split(key)
        starts = flatten(jax.vmap(lambda k: target.init(key=k))(jr.split(key_fit, num)))
        spread = jnp.std(starts, axis=0)
        # A coordinate that always starts at the same value says nothing of its scale.
        fitted = jnp.mean(starts, axis=0), jnp.where(spread > 0, spread, 1.0)
        pairs = zip((self.mean, self.scale), fitted, strict=True)
        mean, scale = (
            fit if own is None else jnp.broadcast_to(jnp.asarray(own, fit.dtype), fit.shape)
            for own, fit in pairs
        )
        noise = jr.normal(key_draw, starts.shape, starts.dtype)
        return mean[None] + scale[None] * noise, Reference(mean, scale)


PATHS = {"auto": None, "prior": PriorPath(), "reference": ReferencePath()}


def choose_path(target: AbstractTarget, path: str | AbstractPath) -> AbstractPath:
    """Return the path that a name means for this target; refuse one that it has not."""
    chosen = PATHS[path] if isinstance(path, str) else path
    if isinstance(chosen, ReferencePath):
        dim = flat_view(target)[0].size
        for name, own in (("mean", chosen.mean), ("scale", chosen.scale)):
            if own is not None and len(own) not in (1, dim):
                raise ValueError(
                    f"`{name}` of a `ReferencePath` must have 1 or {dim} numbers, one for each "
                    f"unconstrained coordinate; got {len(own)}."
                )
        return chosen
    obstacle = no_prior(target) if chosen is None or isinstance(chosen, PriorPath) else ""
    if obstacle and chosen is not None:
        raise ValueError(
            f"`path='prior'` needs a target whose prior can be drawn from: {obstacle}. Use "
            "`path='reference'`, which starts from a Gaussian fitted to initial positions."
        )
    return chosen or PATHS["reference" if obstacle else "prior"]


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
