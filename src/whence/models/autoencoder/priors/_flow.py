"""A normalising flow for the weights of each layer: affine couplings of a Gaussian."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from jaxtyping import Array

from ....core import PRNGKey, whole
from ....core._key import seeded
from ._abstract_prior import AbstractPrior, Layout, layout_of, weight


class LayerFlow(eqx.Module):
    """Invertible maps in turn; each moves every second number by functions of the others."""

    networks: tuple[eqx.nn.MLP, ...]
    log_scale: Array

    @classmethod
    def identity(cls, size: int, couplings: int, width: int, *, key: PRNGKey) -> "LayerFlow":
        """Return a flow that does not move anything yet: last layers are zeros."""
        made = []
        for i, k in enumerate(jr.split(key, couplings if size > 1 else 0)):
            fixed = len(range(i % 2, size, 2))
            net = eqx.nn.MLP(fixed, 2 * (size - fixed), width, 1, jax.nn.tanh, key=k)
            zeros = lambda layer: jax.tree.map(jnp.zeros_like, layer)
            made.append(eqx.tree_at(lambda n: n.layers[-1], net, replace_fn=zeros))
        return cls(tuple(made), jnp.zeros(()))

    def __call__(self, z: Array) -> Array:
        """Return standardised weights of a layer."""
        for i, network in enumerate(self.networks):
            fixed, moved = slice(i % 2, None, 2), slice(1 - i % 2, None, 2)
            log_scale, shift = jnp.split(network(z[fixed]), 2)
            # A step between 1 / e and e.
            z = z.at[moved].set(z[moved] * jnp.exp(jnp.tanh(log_scale)) + shift)
        return z * jnp.exp(self.log_scale)


class FlowPrior(AbstractPrior):
    """Weights of a layer, all together, as the image of independent Gaussian numbers.

    At the start it is `whence.FanIn()`. Engines see the Gaussian numbers, named after the
    layer; the weights follow from them, with no density to be computed backwards. A
    layer of n weights has about `1.5 n width` numbers to select for each coupling: this is
    for small networks.

    References:
        Dinh, Sohl-Dickstein and Bengio (2017), arXiv:1605.08803. Tran, Rossi, Milios and
        Filippone (2022), JMLR 23 (there with planar flows).
    """

    layout: Layout = eqx.field(static=True)
    flows: dict[str, LayerFlow]

    @classmethod
    @seeded
    def fan_in(
        cls, module: Any, *, key: PRNGKey, couplings: int = 4, width: int = 16
    ) -> "FlowPrior":
        """Return flows, for each layer of a module, that do not move anything yet."""
        layout, couplings = layout_of(module), whole("couplings", least=1)(couplings)
        width, flows = whole("width", least=1)(width), {}
        for i, (layer, size) in enumerate(_sizes(layout).items()):
            own = jr.fold_in(key, i)
            flows[layer] = LayerFlow.identity(size, couplings, width, key=own)
        return cls(layout, flows)

    def scales(self):
        return {}

    def weights(self, scales):
        standard = dist.Normal(0.0, 1.0)
        return {layer: weight(standard, (n,)) for layer, n in _sizes(self.layout).items()}

    def arrays(self, values):
        flat, made = {layer: self.flows[layer](z) for layer, z in values.items()}, {}
        for e in self.layout:
            size = math.prod(e.shape)
            own, flat[e.layer] = flat[e.layer][:size], flat[e.layer][size:]
            made[e.path] = e.loc + e.scale * own.reshape(e.shape)
        return made


def _sizes(layout: Layout) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for entry in layout:
        sizes[entry.layer] = sizes.get(entry.layer, 0) + math.prod(entry.shape)
    return sizes
