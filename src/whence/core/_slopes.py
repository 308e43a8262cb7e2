"""Which parts of a position a density depends on, and how; and how it takes its data.

Read off its operations: nothing is compiled or run.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.extend.core import Literal
from jax.interpreters.partial_eval import dce_jaxpr
from jax.tree_util import keystr, tree_leaves_with_path

from ._results import InferenceWarning
from ._walk import is_index


def used(jaxpr: Any) -> list[bool]:
    """Return of which inputs what a program returns depends."""
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]


def computes_with(jaxpr: Any, codes: Sequence[bool]) -> bool:
    """Whether a program makes real numbers of codes, as in `slope * group`.

    To take entries by them, to compare them and to make other codes of them is no such use.

    Args:
        jaxpr: The program.
        codes: Which of its inputs are whole numbers that stand for categories.
    """
    return _flow(jaxpr, codes)[0]


def _flow(jaxpr, codes) -> tuple[bool, list[bool]]:
    """Return whether codes become real numbers, and which outputs are codes."""
    marked = {v for v, is_code in zip(jaxpr.invars, codes) if is_code}
    is_code = lambda v: not isinstance(v, Literal) and v in marked
    for eqn in jaxpr.eqns:
        kind, flags = eqn.primitive.name, [is_code(v) for v in eqn.invars]
        if not any(flags):
            continue
        if kind == "convert_element_type" and _is(eqn.outvars[0], jnp.floating):
            return True, []
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        inner = getattr(inner, "jaxpr", inner)
        outputs = [_is(v, jnp.integer) for v in eqn.outvars]
        if inner is not None and len(inner.invars) == len(flags):
            found, outputs = _flow(inner, flags)
            if found:
                return True, []
        elif is_index(kind):  # what is read or written there counts, and not where
            outputs = [flags[0] or (kind.startswith("scatter") and flags[2])] * len(outputs)
        marked |= {v for v, out in zip(eqn.outvars, outputs) if out}
    return False, [is_code(v) for v in jaxpr.outvars]


def _is(variable, kind) -> bool:
    return jnp.issubdtype(variable.aval.dtype, kind)


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
