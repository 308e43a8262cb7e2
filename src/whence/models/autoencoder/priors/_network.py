"""A network whose weights are latents with one joint prior."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ....core._convert import one_of
from ....language import Model
from ....language._latent import UNDRAWN, Coords, Latent, latents
from ....language._module_leaves import check_module, floating_leaves
from ._abstract_prior import AbstractPrior, Arrays
from ._priors import as_prior


def _weights(network: "RandomNetwork") -> dict[str, Latent]:
    # Names and shapes are asked for before there are values, too.
    drawn = not any(value is UNDRAWN for value in network.scales.values())
    specs = network.prior.weights(network.scales if drawn else _some_scales(network.prior))
    begins = network.begins or {}
    start = lambda name: begins.get(name, "prior")
    return {n: dataclasses.replace(spec, start=start(n)) for n, spec in specs.items()}


class RandomNetwork(Model):
    """An Equinox module whose weights have a joint prior; a field of other models.

    What `whence.bayesian` is for independent priors, for any `AbstractPrior`: hierarchical
    ones, flows, those that were selected. It has no likelihood of its own; a model calls it:
    `dist.Normal(self.network(x)[:, 0], self.sigma)`.

    Latents are `scales`, if the weights depend on some, and `values`, what they are made of;
    `begins` are weights to start from by path, None for draws of the prior.
    """

    prior: AbstractPrior
    begins: Arrays | None
    arrays: Any
    rest: Any = eqx.field(static=True)
    structure: Any = eqx.field(static=True)
    scales: dict[str, Any] = latents(lambda network: network.prior.scales())
    values: dict[str, Any] = latents(_weights)

    def __init__(self, module: Any, prior: Any, *, start: str = "module"):
        """Make the weights of a module latents.

        Args:
            module: An Equinox module, a function of one row.
            prior: An `AbstractPrior`, a `SelectedPrior`, or a rule as `whence.bayesian`
                takes: a numpyro distribution, `whence.FanIn()`, a dict by pattern of paths.
            start: Where engines start: at the weights that the `"module"` has, all chains
                alike, or at draws from the `"prior"`.
        """
        check_module(module)
        as_jax = lambda v: jnp.asarray(v) if isinstance(v, np.ndarray) else v
        module = jax.tree.map(as_jax, module)
        start = one_of("start", ("module", "prior"))(start)
        self.prior = as_prior(prior, module)
        random, others = eqx.partition(module, eqx.is_inexact_array)
        self.arrays, self.rest = eqx.partition(others, eqx.is_array)
        self.structure = jax.tree.structure(random)
        own = self.prior.weights(_some_scales(self.prior))
        begins = {leaf.path: leaf.value for leaf in floating_leaves(module)}
        begins = {name: value for name, value in begins.items() if name in own}
        self.begins = begins if start == "module" else None
        self.scales = dict.fromkeys(self.prior.scales(), UNDRAWN)
        self.values = dict.fromkeys(own, UNDRAWN)
        self.coords = Coords()

    def template(self) -> Any:
        """Return the module with weights to start from, zeros if there are none."""
        zeros = {e.path: jnp.zeros(e.shape, jnp.result_type(float)) for e in self.prior.layout}
        return self.with_arrays(zeros | (self.begins or {}))

    def with_arrays(self, arrays: Arrays) -> Any:
        """Return the module with these weights, by path."""
        random = self.structure.unflatten(arrays[e.path] for e in self.prior.layout)
        return eqx.combine(random, self.arrays, self.rest)

    @property
    def module(self) -> Any:
        """The module with this draw's weights."""
        if any(value is UNDRAWN for value in self.values.values()):
            raise ValueError("Weights have no values yet: see `posterior.map`, `sample_prior`.")
        return self.with_arrays(self.prior.arrays(self.values))

    def __call__(self, x: Array) -> Array:
        """Return the outputs for many rows."""
        return jax.vmap(self.module)(x)


def _some_scales(prior: AbstractPrior) -> dict[str, Array]:
    return {name: jnp.ones(latent.shape) for name, latent in prior.scales().items()}
