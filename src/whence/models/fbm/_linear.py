"""Which equations are linear and Gaussian, and the system that they are then."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import block_diag
from jaxtyping import Array

from ...core._dtype import relaxed
from .._seen import plain
from ..linear_gaussian._kalman import System
from ..linear_gaussian._structure import depends
from ._bank import Bank
from ._transition import transitions


def value(model: Any, name: str, *arguments: Array) -> Array:
    """Return `drift` or `diffusion` of a user's model, one number a component, or raise."""
    x = arguments[-1]
    with relaxed():
        got = jnp.asarray(getattr(model, name)(*arguments), x.dtype)
    if got.shape == x.shape or (name == "diffusion" and got.shape == ()):
        return jnp.broadcast_to(got, x.shape)
    who = f"`{name}` of {type(model).__name__}"
    if name == "diffusion":
        raise ValueError(
            f"{who} must be diagonal: one number, or shape {x.shape}, the scale of the noise "
            f"of each component of the state; got shape {got.shape}. Components have drivers "
            "of their own."
        )
    raise ValueError(
        f"{who} must return shape {x.shape}, one rate for each component of the state (as "
        f"`initial` says); got shape {got.shape}."
    )


def _normal(model: Any, name: str, dtype: Any, *arguments: Array) -> Any:
    """Return mean and standard deviation of `observe` or `initial` of a user's model.

    None unless it is a normal law of at most one axis.
    """
    with relaxed():
        law = plain(getattr(model, name)(*arguments))
        if not isinstance(law, dist.Normal) or len(law.shape()) > 1:
            return None
        both = jnp.asarray(law.loc, dtype), jnp.asarray(law.scale, dtype)
        return tuple(jnp.broadcast_arrays(*both))


def seen_through(model: Any, x: Array) -> tuple[Array, Array, bool]:
    """Return mean and standard deviation of what is observed of a state, and if it is a vector.

    Raise unless `observe` returns a normal distribution.
    """
    both = _normal(model, "observe", x.dtype, x)
    if both is None:
        raise ValueError(
            f"`observe` of {type(model).__name__} must return a `numpyro.distributions.Normal` "
            "of one number or a vector of them: the path is integrated out exactly."
        )
    loc, scale = both
    return jnp.atleast_1d(loc), jnp.atleast_1d(scale), bool(loc.shape)


def initial(model: Any, dtype: Any) -> tuple[Array, Array]:
    """Return mean and standard deviation of the state at the start; raise if not normal."""
    both = _normal(model, "initial", dtype)
    if both is None or both[0].ndim != 1:
        raise ValueError(
            f"`initial` of {type(model).__name__} must return a `numpyro.distributions.Normal` "
            f"of shape (components,); got {model.initial()!r}."
        )
    return both


def bends(model: Any, x: Array) -> str:
    """Return what makes the equation, or what is seen of it, not affine; empty if nothing."""
    t = jnp.zeros((), x.dtype)
    drift = lambda t, x: value(model, "drift", t, x)
    if _normal(model, "observe", x.dtype, x) is None:
        return "`observe` must return a `numpyro.distributions.Normal`, of at most one axis"
    loc = lambda x: seen_through(model, x)[0]
    if any(depends(jax.jacfwd(drift, 1), t, x)[1:]):
        return "`drift` must be affine in the state"
    if depends(lambda t, x: value(model, "diffusion", t, x), t, x)[1]:
        return "`diffusion` must not depend on the state"
    if depends(lambda x: jax.jacfwd(loc)(x), x)[0]:
        return "the mean of `observe` must be affine in the state"
    if depends(lambda x: seen_through(model, x)[1], x)[0]:
        return "the scale of `observe` must not depend on the state"
    return ""


def why_not_linear(model: Any, x: Array) -> str:
    """Return what keeps the path from being integrated out exactly; empty if nothing."""
    reason = bends(model, x)
    if reason:
        return reason
    t = jnp.zeros((), x.dtype)
    for name in ("drift", "diffusion"):
        if depends(lambda t, x, name=name: value(model, name, t, x), t, x)[0]:
            return f"`{name}` must not depend on time"
    return "H must not depend on time" * model.varies


def system(model: Any, bank: Bank, times: Array, start: Array) -> System:
    """Return the state (X, Y) of a linear model at each time, Y the bank of each driver.

    Raise if the model is not linear and Gaussian, naming what is not.
    """
    dtype = times.dtype
    loc, scale = initial(model, dtype)
    d, k = len(loc), len(bank.rates)
    weights = driver_weights(bank, d)
    zero, t = jnp.zeros_like(loc), jnp.zeros((), dtype)
    reason = why_not_linear(model, zero)
    if reason:
        raise ValueError(
            f"{type(model).__name__} has no exact likelihood: {reason}. `whence.condition` "
            "makes its path a latent."
        )
    with relaxed():
        matrix = jax.jacfwd(lambda x: value(model, "drift", t, x))(zero)
        sight = jax.jacfwd(lambda x: seen_through(model, x)[0])(zero)
    sigma = value(model, "diffusion", t, zero)
    offset, noise, _ = seen_through(model, zero)

    pull = -(sigma[:, None] * weights * bank.rates[None, :])  # of Y on X, (driver, node)
    drift = block_diag(matrix, jnp.diag(-jnp.tile(bank.rates, d)))
    drift = drift.at[:d, d:].set(block_diag(*pull[:, None, :]))
    jump = sigma * (weights @ bank.scales)
    spread = jnp.concatenate([jnp.diag(jump), block_diag(*d * [bank.scales[:, None]])])
    shift = value(model, "drift", t, zero)
    gaps = jnp.diff(times, prepend=start[None])
    most = jnp.maximum(jnp.abs(times[-1]), jnp.abs(start))
    steps = transitions(drift, shift, spread, gaps, most)
    covariance = block_diag(jnp.diag(scale**2), *d * [bank.stationary()])
    mean, sight = jnp.pad(loc, (0, d * k)), jnp.pad(sight, ((0, 0), (0, d * k)))
    return System(mean, covariance, steps, sight, offset, noise**2)


def driver_weights(bank: Bank, components: int) -> Array:
    """Return the weights `(driver, node)`; raise unless there is an H for each, or one."""
    shape = bank.weights.shape[:-1]
    if shape not in ((), (components,)):
        raise ValueError(
            f"`hurst` must be one number, or one for each of the {components} components of "
            f"the state (as `initial` says); got shape {shape}."
        )
    return jnp.broadcast_to(bank.weights, (components, len(bank.rates)))
