"""Which parts of a position a density depends on, and along which it has a slope.

Read off its operations: nothing is compiled or run.
"""

import warnings
from typing import Any

import jax
from jax.core import eval_jaxpr
from jax.interpreters.partial_eval import dce_jaxpr
from jax.tree_util import keystr, tree_leaves_with_path

from ._results import InferenceWarning


def used(jaxpr: Any) -> list[bool]:
    """Return of which inputs what a program returns depends."""
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]


def unread(closed: Any, position: Any) -> tuple[list[str], list[str]]:
    """Return the parts of a position that a density does not read, and reads without a slope.

    Args:
        closed: The density, as `jax.make_jaxpr` makes it of a position, or of data and a
            position.
        position: Shapes, by name.
    """
    paths = [keystr(p, simple=True, separator=".") for p, _ in tree_leaves_with_path(position)]
    points = tuple(jax.tree.leaves(position))
    num_data = len(closed.in_avals) - len(points)
    data, read = tuple(closed.in_avals[:num_data]), used(closed.jaxpr)[num_data:]

    def slope(data, points, directions):
        value = lambda *x: eval_jaxpr(closed.jaxpr, closed.consts, *data, *x)
        return jax.jvp(value, points, directions)[1]

    try:
        linear = jax.make_jaxpr(slope)(data, points, points)
        rises = used(linear.jaxpr)[num_data + len(points) :]
    except Exception:  # noqa: BLE001 - only seen in reverse, or not at all: not judged
        rises = read
    blind = [name for name, is_read in zip(paths, read) if not is_read]
    return blind, [name for name, r, s in zip(paths, read, rises) if r and not s]


def warn_of_slopes(closed: Any, position: Any, name: str, stacklevel: int) -> None:
    """Warn of a likelihood that no latent, or no slope along a latent, enters.

    Args:
        closed: The log likelihood, as for `unread`.
        position: Shapes, by name.
        name: Of the model, for the message.
        stacklevel: As `warnings.warn` counts, from the caller.
    """
    blind, flat = unread(closed, position)
    if position and len(blind) == len(jax.tree.leaves(position)):
        text = (
            f"The likelihood of {name} depends on none of its latents: its posterior is its "
            "prior. See that it reads what was drawn."
        )
    elif flat:
        text = (
            f"The likelihood of {name} has no slope along {', '.join(map(repr, flat))}: what "
            "it does there is to compare, to round or `stop_gradient`. Engines that follow "
            "gradients do not see what the data say of it. Write it smoothly, sum over the "
            "values it can have, or take an engine without gradients, as "
            "`TemperedSMC(kernel='rwm')`."
        )
    else:
        return
    warnings.warn(text, InferenceWarning, stacklevel=stacklevel + 1)
