"""The finite network of a description: Equinox modules in NTK parameterisation."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from ....core._types import AnyArray, PRNGKey
from ._initialisations import AbstractInitialisation, Independent


class ExampleShape(NamedTuple):
    """Shape of one example between two layers, channels last."""

    spatial: tuple[int, ...]
    channels: int
    is_input: bool


class FinitePlan(NamedTuple):
    """What a layer needs to make its finite twin."""

    width: int  # units (or channels) of hidden layers
    outputs: int | None  # units, where this is the readout
    initialisation: AbstractInitialisation


class Linear(eqx.Module):
    """`sqrt(weight_variance / fan_in) W x + sqrt(bias_variance) b`, dense or convolutional.

    `weight` and `bias` are of variance 1 and what training moves; the variances are
    constants of it.
    """

    weight: Array  # (out, in, *window)
    bias: Array  # (out,)
    weight_variance: Array
    bias_variance: Array
    stride: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        """Apply the layer to one example."""
        fan_in = math.prod(self.weight.shape[1:])
        scale = jnp.sqrt(jax.lax.stop_gradient(self.weight_variance) / fan_in)
        shift = jnp.sqrt(jax.lax.stop_gradient(self.bias_variance)) * self.bias
        if x.ndim == 1:
            return scale * (self.weight @ x) + shift
        channels_first = jnp.moveaxis(x, -1, 0)[None]
        y = jax.lax.conv_general_dilated(channels_first, self.weight, self.stride, "SAME")[0]
        return scale * jnp.moveaxis(y, 0, -1) + shift


class FiniteSerial(eqx.Module):
    """Layers in turn."""

    layers: tuple

    def __call__(self, x: AnyArray) -> Array:
        """Apply the layers to one example."""
        value = jnp.asarray(x)
        for layer in self.layers:
            value = layer(value)
        return value


class Skip(eqx.Module):
    """An input plus a branch of it."""

    branch: eqx.Module

    def __call__(self, x: Array) -> Array:
        """Apply the branch to one example, and add the example."""
        return x + self.branch(x)  # pyright: ignore[reportCallIssue]


class Ravel(eqx.Module):
    """All pixels and channels in one vector."""

    def __call__(self, x: Array) -> Array:
        """Flatten one example."""
        return x.ravel()


class Average(eqx.Module):
    """The average over pixels."""

    def __call__(self, x: Array) -> Array:
        """Average one example."""
        return x.mean(axis=tuple(range(x.ndim - 1)))


def linear(
    shape: ExampleShape,
    plan: FinitePlan,
    variances: tuple[Array, Array],
    window: tuple[int, ...],
    stride: tuple[int, ...],
    *,
    key: PRNGKey,
) -> tuple[Linear, ExampleShape]:
    """Return a layer with random weights, and the shape that it gives."""
    units = plan.width if plan.outputs is None else plan.outputs
    # Rows of the first matrix are few numbers each: only independent ones are Gaussian.
    law = Independent() if shape.is_input else plan.initialisation
    key_weight, key_bias = jr.split(key)
    keys = jr.split(key_weight, math.prod(window))
    matrices = jax.vmap(lambda k: law.sample((units, shape.channels), key=k), out_axes=-1)(keys)
    weight = matrices.reshape(units, shape.channels, *window)
    layer = Linear(weight, jr.normal(key_bias, (units,)), *variances, stride)
    spatial = tuple(-(-length // step) for length, step in zip(shape.spatial, stride))
    return layer, ExampleShape(spatial, units, False)
