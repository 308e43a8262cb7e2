"""Which arrays a network has, and the scale under which its layers keep their size."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ....language._module_leaves import select
from ....language._module_priors import FanIn

PER = ("net", "layer", "tensor", "weight")


class Entry(NamedTuple):
    """An array of a network.

    Attributes:
        path: Where it is, for example `decoder.layers.0.weight`.
        shape: Its shape.
        loc: Mean of its entries under `FanIn()`: 1 for gains of normalising layers.
        scale: Their standard deviation under `FanIn()`.
        layer: Path of the layer that it belongs to.
    """

    path: str
    shape: tuple[int, ...]
    loc: float
    scale: float
    layer: str

    def group(self, per: str) -> str:
        """Return the name of what it shares a parameter with."""
        return {"net": "all", "layer": self.layer}.get(per, self.path)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


Layout = tuple[Entry, ...]
Arrays = dict[str, Array]  # of a network, by path


def layout_of(module: Any) -> Layout:
    """Return the floating-point arrays of a module."""
    entries = []
    with jax.ensure_compile_time_eval():
        for leaf in select(module, None):
            law: Any = FanIn().prior(leaf)
            layer = leaf.path.rpartition(".")[0]
            loc, scale = float(law.loc), float(law.scale)
            entries.append(Entry(leaf.path, tuple(leaf.value.shape), loc, scale, layer))
    return tuple(entries)


def check_arrays(name: str, arrays: Arrays, layout: Layout) -> None:
    """Raise `ValueError` unless there is an array of the right shape for each entry."""
    for entry in layout:
        got = None if entry.path not in arrays else jnp.shape(arrays[entry.path])
        if got != entry.shape:
            raise ValueError(
                f"`{name}` must have an array of shape {entry.shape} for `{entry.path}`; got "
                f"{'none' if got is None else got}."
            )
