"""Targets as HTML: what is unknown, what is given."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..diagnostics._html import block, paragraph, table
from ._flat import position_shapes
from ._target import AbstractDescribedTarget, AbstractTarget, NamesLatents
from ._tree import named_leaves


def target_html(target: AbstractTarget, title: str, priors: Mapping[str, str] = {}) -> str:
    """Return latents and data of a target as HTML.

    Args:
        target: The target.
        title: Its name.
        priors: Priors in words, by latent.
    """
    described = isinstance(target, AbstractDescribedTarget)
    dims = target.dims if described else {}
    if isinstance(target, NamesLatents):
        shapes = {latent.name: latent.shape for latent in target.latents}
    else:
        draw = jax.eval_shape(target.constrain, position_shapes(target))
        shapes = {name: leaf.shape for name, leaf in named_leaves(draw).items()}
    latents = [(n, priors.get(n, ""), axes_text(s, dims.get(n, ()))) for n, s in shapes.items()]
    parts = [table(("latent", "prior", "axes"), latents)]
    if described:
        given = {"observed": target.observed_data, "input": target.constant_data}
        rows = [
            (name, kind, axes_text(np.shape(value), dims.get(name, ())))
            for kind, values in given.items()
            for name, value in values.items()
        ]
        parts.append(table(("data", "", "axes"), rows))
        if target.num_data is not None:
            parts.append(paragraph(f"{target.num_data} rows"))
    return block(*parts, title=title)


def axes_text(shape: tuple[int, ...], names: tuple[str, ...]) -> str:
    """Return names and lengths of axes, as `school 8 × 2`."""
    named = (*names, *[""] * len(shape))
    return " × ".join(f"{name} {length}".strip() for name, length in zip(named, shape))


def text_of(prior: Any) -> str:
    """Return a numpyro distribution in words, without numbers that are not known yet."""
    parts = []
    for name in type(prior).arg_constraints:
        try:
            value = getattr(prior, name)
            parts.append(f"{name}={float(value):g}" if np.size(value) == 1 else f"{name}=...")
        except (TypeError, AttributeError, ValueError, jax.errors.JAXTypeError):
            parts.append(f"{name}=...")
    return f"{type(prior).__name__}({', '.join(parts)})"
