"""Parameters that one data set cannot tell apart, found before anything is fitted.

One data set holds one draw of the scale v. Raising the evidence over all parameters of its
law ends at a known scale, and with flat priors the posterior has infinite mass there. And
the size of `v (K + noise I)` is one number: of the parameters that only multiply (the scale
of the law, the readout's variance, those of layers below it where all between is positively
homogeneous and without bias) the data see the product. Along `product = constant` a second
flat prior has infinite mass. Noise counts too there: where it is large, nothing else shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpyro.distributions as dist
from jax.core import Tracer

from .._parameter import Unknown, unknowns
from ..laws._abstract_law import AbstractLaw
from ..network._abstract_layer import AbstractLayer
from ..network._activations import LeakyReLU
from ..network._layers import Conv, Dense, Flatten, GlobalAveragePooling, Residual, Serial

# All of them at once take the law to a point: the evidence does not fall on the way.
_TO_A_POINT = {"InverseGamma": {"shape", "scale"}, "BurrXII": {"c"}, "GIG": {"chi", "psi"}}
_MULTIPLIES = {"InverseGamma": "scale", "HalfCauchy": "scale", "PointMass": "value"}


def degeneracies(description: dict[str, Any]) -> tuple[str, ...]:
    """Return in words what priors alone will tell apart; empty if nothing."""
    found = unknowns(description)
    return (*_of_the_law(description["scale"]), *_of_the_size(description, found))


def _of_the_law(law: AbstractLaw) -> tuple[str, ...]:
    own, kind = unknowns(law), type(law).__name__
    to_a_point = _TO_A_POINT.get(kind, set())
    if to_a_point and to_a_point <= {n for n, u in own.items() if _is_flat(u)}:
        raise ValueError(
            f"There is no posterior: {_listing(to_a_point)} of `{kind}` must not have flat "
            "priors, as one data set holds one draw of the scale, and its likelihood does not "
            f"fall as the law shrinks to a point. {_INSTEAD}"
        )
    if len(own) < 2:
        return ()
    return (
        f"One data set holds one draw of the scale, so {_listing(own)} of `{kind}` are known "
        f"from their priors more than from data. {_INSTEAD}",
    )


_INSTEAD = "Fix one (a shape of 2, say), or take `Jeffreys()`, which has none."


def _of_the_size(description, found: dict[str, Unknown]) -> tuple[str, ...]:
    # Biases and noise count for little where the weights are large, and flat priors go there.
    flat = [n for n in (*_group(description, found, False), "noise") if n in found]
    flat = [name for name in flat if _is_flat(found[name])]
    if len(flat) > 1:
        raise ValueError(
            f"There is no posterior: of {_listing(flat)} at most one may have a flat prior, as "
            "data see only their product with each other (for noise: where it is large). Fix "
            "the others, or give them proper priors."
        )
    group = _group(description, found, True)
    if len(group) < 2:
        return ()
    return (
        f"Data see only the product of {_listing(group)}; their priors alone tell them apart. "
        "Fix all but one of them.",
    )


def _group(description, found: dict[str, Unknown], exact: bool) -> list[str]:
    """Return the unknown parameters that multiply `K + noise I`, or nearly so."""
    group = [f"network.{path}" for path in _multipliers(description["network"], exact)]
    group.append(f"scale.{_MULTIPLIES.get(type(description['scale']).__name__)}")
    return [name for name in group if name in found]


def _multipliers(network: AbstractLayer, exact: bool) -> Iterator[str]:
    """Yield paths of variances that multiply the kernel, from the readout down."""
    for path, layer in reversed(list(_layers_of(network, ""))):
        if not _is_homogeneous(layer, exact):
            return
        if isinstance(layer, Dense | Conv):
            yield f"{path}weight_variance"


def _layers_of(layer: AbstractLayer, path: str) -> Iterator[tuple[str, AbstractLayer]]:
    if not isinstance(layer, Serial):
        yield path, layer
        return
    for i, inner in enumerate(layer.layers):
        yield from _layers_of(inner, f"{path}layers.{i}.")


def _is_homogeneous(layer: AbstractLayer, exact: bool) -> bool:
    """Whether what a layer gives grows as what it reads; but for biases, if not `exact`."""
    if isinstance(layer, Dense | Conv):
        bias: Any = layer.bias_variance
        return not exact or (not isinstance(bias, Unknown | Tracer) and float(bias) == 0)
    if isinstance(layer, Serial):
        return all(_is_homogeneous(inner, exact) for inner in layer.layers)
    if isinstance(layer, Residual):
        return _is_homogeneous(layer.branch, exact)
    return isinstance(layer, LeakyReLU | Flatten | GlobalAveragePooling)


def _is_flat(unknown: Unknown) -> bool:
    return isinstance(unknown.prior, dist.ImproperUniform)


def _listing(names: Any) -> str:
    *first, last = (f"`{name}`" for name in sorted(names))
    return f"{', '.join(first)} and {last}" if first else last
