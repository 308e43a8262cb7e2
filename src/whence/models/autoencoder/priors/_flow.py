"""A normalising flow for the weights of each layer: affine couplings of a Gaussian."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from jaxtyping import Array, Float

from ....core._convert import whole
from ....core._key import seeded
from ....core._types import PRNGKey
from ....language._latent import Latent
from ._abstract_prior import AbstractPrior
from ._layout import Layout, layout_of


class Coupling(eqx.Module):
    """An invertible map that moves every second number by functions of the others."""

    network: eqx.nn.MLP
    parity: int = eqx.field(static=True)

    def __call__(self, z: Float[Array, " size"]) -> Array:
        """Return the image of `z`."""
        fixed, moved = z[self.parity :: 2], z[1 - self.parity :: 2]
        log_scale, shift = jnp.split(self.network(fixed), 2)
        # A step between 1 / e and e.
        return z.at[1 - self.parity :: 2].set(moved * jnp.exp(jnp.tanh(log_scale)) + shift)


class LayerFlow(eqx.Module):
    """Couplings in turn, and a scale for all."""

    couplings: tuple[Coupling, ...]
    log_scale: Array

    def __call__(self, z: Array) -> Array:
        """Return standardised weights of a layer."""
        for coupling in self.couplings:
            z = coupling(z)
        return z * jnp.exp(self.log_scale)


class FlowPrior(AbstractPrior):
    """Weights of a layer, all together, as the image of independent Gaussian numbers.

    At the start it is `whence.FanIn()`. Engines see the Gaussian numbers, named after the
    layer; the weights follow from them, with no density to be computed backwards. A
    layer of n weights has about `1.5 n width` numbers to select for each coupling: this is
    for small networks.

    Attributes:
        layout: The network's arrays.
        flows: By layer.

    References:
        Dinh, Sohl-Dickstein and Bengio (2017), Density estimation using real NVP,
        arXiv:1605.08803. Tran, Rossi, Milios and Filippone (2022), All you need is a good
        functional prior for Bayesian deep learning, JMLR 23 (there with planar flows).
    """

    layout: Layout = eqx.field(static=True)
    flows: dict[str, LayerFlow]

    @classmethod
    @seeded
    def fan_in(
        cls, module: Any, *, key: PRNGKey, couplings: int = 4, width: int = 16
    ) -> "FlowPrior":
        """Return flows that do not move anything yet.

        Args:
            module: The network.
            key: A typed key.
            couplings: For each layer.
            width: Of the hidden layer of a coupling.
        """
        layout = layout_of(module)
        couplings, width = (
            whole("couplings", least=1)(couplings),
            whole("width", least=1)(width),
        )
        sizes: dict[str, int] = {}
        for entry in layout:
            sizes[entry.layer] = sizes.get(entry.layer, 0) + entry.size
        flows = {}
        for i, (layer, size) in enumerate(sizes.items()):
            keys = jr.split(jr.fold_in(key, i), couplings)
            made = [_coupling(size, width, j % 2, k) for j, k in enumerate(keys) if size > 1]
            flows[layer] = LayerFlow(tuple(made), jnp.zeros(()))
        return cls(layout, flows)

    def scales(self):
        return {}

    def weights(self, scales):
        sizes: dict[str, int] = {}
        for entry in self.layout:
            sizes[entry.layer] = sizes.get(entry.layer, 0) + entry.size
        standard = dist.Normal(0.0, 1.0)
        return {
            layer: Latent(prior=standard, shape=(n,), dims=(), noncentered=False)
            for layer, n in sizes.items()
        }

    def arrays(self, values):
        flat = {layer: self.flows[layer](z) for layer, z in values.items()}
        begin = dict.fromkeys(values, 0)
        made = {}
        for e in self.layout:
            i = begin[e.layer]
            begin[e.layer] += e.size
            made[e.path] = e.loc + e.scale * flat[e.layer][i : i + e.size].reshape(e.shape)
        return made


def _coupling(size: int, width: int, parity: int, key: PRNGKey) -> Coupling:
    fixed = len(range(parity, size, 2))
    network = eqx.nn.MLP(fixed, 2 * (size - fixed), width, 1, jax.nn.tanh, key=key)
    # A last layer of zeros: the map is the identity.
    last = lambda net: (net.layers[-1].weight, net.layers[-1].bias)
    network = eqx.tree_at(last, network, [jnp.zeros_like(x) for x in last(network)])
    return Coupling(network, parity)
