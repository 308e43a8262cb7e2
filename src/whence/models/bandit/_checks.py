"""Checks of arguments whose values are known, that is, outside compiled code.

Inside `jax.jit` and `jax.vmap` values are not known and go unchecked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ...core._convert import whole

# What users give: numbers, arrays, or lists of them.
Numbers = ArrayLike | Sequence[Any]


def known(value: Any, name: str = "value") -> np.ndarray | None:
    """Return numbers as a NumPy array, or None inside compiled code."""
    if isinstance(value, Tracer):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (bool, np.integer, np.floating)):
        raise ValueError(f"`{name}` must be numbers; got {value!r}.")
    return array


def require_all(name: str, value: Any, rule: str, good: Callable[[np.ndarray], Any]) -> None:
    """Raise unless `good` of every element."""
    values = known(value, name)
    if values is not None and not (kept := np.asarray(good(values))).all():
        raise ValueError(f"`{name}` must be {rule}; got {values[~kept].flat[0]}.")


def require_finite(name: str, value: Any) -> None:
    """Raise unless every element is finite."""
    require_all(name, value, "finite", np.isfinite)


def require_positive(name: str, value: Any) -> None:
    """Raise unless every element is positive and finite."""
    require_all(name, value, "positive and finite", lambda v: (v > 0) & np.isfinite(v))


def require_within(name: str, value: Any, low: float, high: float) -> None:
    """Raise unless every element is in the closed interval."""
    rule = f"between {low:g} and {high:g}"
    require_all(name, value, rule, lambda v: (v >= low) & (v <= high))


def require_counts(name: str, growth: Any, now: Any, *, same: Any = None) -> None:
    """Raise unless a parameter has grown from a prior's by whole numbers of rewards.

    Args:
        name: Of the parameter.
        growth: By how many rewards it has grown.
        now: What it is by now, for the rounding errors.
        same: Number of rewards by another parameter, with which it must agree.
    """
    counts, now, same = known(growth), known(now), growth if same is None else same
    if counts is None or now is None:
        return
    slack = 1e-6 + 16 * np.finfo(now.dtype).eps * now
    want = np.maximum(np.round(same), 0)
    if (bad := np.abs(counts - want) > slack).any():
        raise ValueError(
            f"`state` must have begun from a prior with the `{name}` of this policy's, by "
            f"which rounds are counted; it has grown by {counts[bad].flat[0]:g} rewards."
        )


def require_arm(arm: Any, arms: int) -> None:
    """Raise unless every element is the index of an arm."""
    known(arm, "arm")
    if not jnp.issubdtype(jnp.asarray(arm).dtype, jnp.integer):
        raise ValueError(f"`arm` must be an integer; got {jnp.asarray(arm).dtype}.")
    rule = f"from 0 to {arms - 1}, as there are {arms} arms"
    require_all("arm", arm, rule, lambda v: (v >= 0) & (v < arms))


def pulled(
    arm: Any, reward: Any, arms: int, batch: tuple[int, ...], dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Return an arm and its reward as arrays of the shape of a batch, or raise."""
    require_arm(arm, arms)
    with np.errstate(over="ignore"):  # told below
        arm, reward = jnp.asarray(arm), jnp.asarray(reward, dtype)
    require_all("reward", reward, f"finite in {dtype}", np.isfinite)
    if arm.shape != batch or reward.shape != batch:
        raise ValueError(
            f"`arm` and `reward` must have the shape of the batch, {batch}; got {arm.shape} "
            f"and {reward.shape}."
        )
    return arm, reward


def real(value: Any) -> jax.Array:
    """Return an array of floating-point numbers, in its own precision if it has one."""
    array = jnp.asarray(value)
    return array.astype(jnp.result_type(array, 0.0))


def per_arm(arms: int | None, **values: Any) -> tuple[Float[Array, "arm *batch"], ...]:
    """Broadcast parameters to one shape `(arm, *batch)` and one floating-point type.

    Args:
        arms: Number of arms; None if an array among the values tells.
        **values: Parameters by name: scalars, or arrays with axis 0 for the arms.

    Raises:
        ValueError: If shapes do not match, or nothing tells the number of arms.
    """
    arrays = {name: jnp.asarray(value) for name, value in values.items()}
    ndim = max(array.ndim for array in arrays.values())
    if arms is None and ndim == 0:
        raise ValueError("`arms` must be given if every parameter is a scalar; got None.")
    if arms is not None:
        arms = whole("arms", least=1)(arms)
    # Axes after the first are batch axes: a vector of arms gets them at the end.
    padded = {
        name: array.reshape(array.shape + (1,) * (ndim - array.ndim))
        for name, array in arrays.items()
    }
    lead = () if arms is None else (arms,) + (1,) * (max(ndim, 1) - 1)
    try:
        shape = jnp.broadcast_shapes(lead, *(array.shape for array in padded.values()))
    except ValueError:
        shape = None
    if shape is None or (arms is not None and shape[0] != arms):
        got = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        want = "one" if arms is None else f"{arms} arms, one"
        raise ValueError(
            f"Parameters must be scalars or arrays of {want} length along axis 0; got {got}."
        )
    dtype = jnp.result_type(*arrays.values(), 0.0)
    return tuple(jnp.broadcast_to(array.astype(dtype), shape) for array in padded.values())


def one_hot(arm: Any, arms: int) -> jax.Array:
    """Return a mask of shape `(arm, *batch)`, true at the chosen arm.

    Updates use masks in place of scatters, which are slow when vectorised.
    """
    arm = jnp.asarray(arm)
    return jnp.arange(arms).reshape((arms,) + (1,) * arm.ndim) == arm
