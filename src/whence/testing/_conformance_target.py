"""The suite that the author of a front end runs: `check_target(my_target, key=key)`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree

from ..core._key import seeded
from ..core._target import AbstractDescribedTarget
from ..core._tree import named_leaves, unravel
from ..core._types import Position, PRNGKey
from ._conformance_model import check_gradient, check_parts, finite_positions
from ._require import require


@seeded
def check_target(target: AbstractDescribedTarget, *, key: PRNGKey, points: int = 3) -> None:
    """Check that a target is one density, and that its data are data.

    At several points of unconstrained space: the log density is log prior plus log
    likelihood, and its gradient that of finite differences. No observed variable is among
    the latents or derived values, every coordinate of a position moves one of these, and
    the likelihood is not the same everywhere: a front end that samples an observed site as
    one more latent breaks at least one of the three. Names of axes fit shapes.

    For a `Model`, `check_model` asks more.

    Args:
        target: The target, with data.
        key: A typed key.
        points: Number of points to check at, at least 2.

    Raises:
        AssertionError: With a sentence that names what is wrong.
    """
    if points < 2:
        raise ValueError(f"`points` must be at least 2; got {points}.")
    positions = finite_positions(target, points, key)
    check_names(target, positions[0])
    check_axes(target, positions[0])
    for number, position in enumerate(positions):
        check_parts(target, position)
        check_gradient(target, position, key=jr.fold_in(key, number))
    check_coordinates(target, positions)
    check_data_count(target, positions)


def check_names(target: AbstractDescribedTarget, position: Position) -> None:
    """No name is that of an observed variable and of a latent or derived value."""
    variables = jax.eval_shape(lambda p: target.variables(target.constrain(p)), position)
    both = sorted(set(variables) & set(target.observed_data))
    require(
        not both,
        f"Observed variables must not be sampled, but {both} are among the variables of a "
        "draw.",
    )


def check_axes(target: AbstractDescribedTarget, position: Position) -> None:
    """Names of axes and labels fit the shapes of variables and observed data."""
    variables = jax.eval_shape(lambda p: target.variables(target.constrain(p)), position)
    shapes = {name: np.shape(value) for name, value in target.observed_data.items()}
    shapes |= {name: value.shape for name, value in variables.items()}
    coords = target.coords
    for name, dims in target.dims.items():
        shape = shapes.get(name)
        if shape is None:  # of constant data, or of another view of the model
            continue
        require(
            len(dims) == len(shape),
            f"`dims[{name!r}]` names {len(dims)} axes, {dims}; its shape is {shape}.",
        )
        for axis, length in zip(dims, shape):
            labels = len(coords[axis]) if axis in coords else length
            require(
                labels == length,
                f"`coords[{axis!r}]` has {labels} labels, but {name!r} has {length} entries "
                "there.",
            )


def check_coordinates(target: AbstractDescribedTarget, positions: list[Position]) -> None:
    """Every coordinate of a position moves a latent or derived value."""
    moves = np.any([_moves(target, position) for position in positions], axis=0)
    still = unravel(~moves, positions[0])
    names = [name for name, leaf in named_leaves(still).items() if np.any(leaf)]
    require(
        not names,
        f"Coordinates of {names} move no variable of a draw: something is sampled that "
        "nobody asked for.",
    )


def check_data_count(target: AbstractDescribedTarget, positions: list[Position]) -> None:
    """The likelihood of the data depends on where it is asked for."""
    if not target.observed_data:
        return
    found = [float(_log_likelihood(target, position)) for position in positions]
    require(
        len(set(found)) > 1,
        f"The target has observed data ({', '.join(target.observed_data)}), but its log "
        f"likelihood is {found[0]:.6g} everywhere: the data do not count.",
    )


# Compiled once for all points; the target is an argument, so its data are no constants.


@eqx.filter_jit
def _log_likelihood(target, position):
    return jnp.sum(target.log_likelihood(position))


@eqx.filter_jit
def _moves(target, position):
    """Whether each coordinate of a position moves a floating-point variable."""
    flat, back = ravel_pytree(position)

    def values(flat):
        named = target.variables(target.constrain(back(flat)))
        return [v.ravel() for v in named.values() if jnp.issubdtype(v.dtype, jnp.inexact)]

    return jnp.any(jnp.concatenate(jax.jacfwd(values)(flat)) != 0, axis=0)
