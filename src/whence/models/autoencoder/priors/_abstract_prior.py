"""What a law of weights is: latents by name, and arrays of a network made of their values."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array

from ....core._types import PRNGKey
from ....language._latent import Latent
from ....language._module_leaves import select
from ....language._module_priors import FanIn

PER = ("net", "layer", "tensor", "weight")


class Entry(NamedTuple):
    """An array of a network: its path, shape, mean and deviation under `FanIn()`, and layer."""

    path: str
    shape: tuple[int, ...]
    loc: float
    scale: float
    layer: str

    def group(self, per: str) -> str:
        """Return the name of what it shares a parameter with."""
        return {"net": "all", "layer": self.layer}.get(per, self.path)


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


def weight(prior: Any, shape: tuple[int, ...]) -> Latent:
    """Return the declaration of a latent of this shape."""
    return Latent(prior=prior, shape=shape, dims=(), noncentered=False)


class AbstractPrior(eqx.Module):
    """A law of the weights of one network.

    Its floating-point arrays are what `select_prior` and `match_prior` move; all other
    numbers are fixed. `scales` are latents that the weights depend on, if it has any.
    """

    layout: eqx.AbstractVar[Layout]

    @abc.abstractmethod
    def scales(self) -> dict[str, Latent]:
        """Return latents that weights depend on, by name."""

    @abc.abstractmethod
    def weights(self, scales: dict[str, Array]) -> dict[str, Latent]:
        """Return latents that weights are made of, by name, given values of `scales`."""

    @abc.abstractmethod
    def arrays(self, values: dict[str, Array]) -> Arrays:
        """Return the arrays of the network by path, given values of `weights`."""

    @property
    def params(self) -> Any:
        """What can be moved: this prior with its floating-point arrays alone."""
        return eqx.filter(self, eqx.is_inexact_array)

    def with_params(self, params: Any) -> "AbstractPrior":
        """Return this prior with other arrays, in the form of `params`."""
        return eqx.combine(params, self)

    def sample(self, *, key: PRNGKey) -> Arrays:
        """Draw the arrays of a network, differentiable in the arrays of this prior."""
        key_scales, key_weights = jr.split(key)
        scales = _draw(self.scales(), key_scales)
        return self.arrays(_draw(self.weights(scales), key_weights))


def _draw(latents: dict[str, Latent], key: PRNGKey) -> dict[str, Array]:
    drawn = {}
    for i, (name, latent) in enumerate(latents.items()):
        prior: Any = latent.prior
        drawn[name] = prior.expand(latent.shape).sample(jr.fold_in(key, i))
    return drawn
