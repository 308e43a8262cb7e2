"""Layers of a description: each maps second moments, and makes its finite twin."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ....core._convert import part
from ....core._types import PRNGKey
from .._parameter import Number, Parameter, parameter
from ._abstract_layer import AbstractLayer, sizes
from ._finite import (
    Average,
    ExampleShape,
    FinitePlan,
    FiniteSerial,
    Linear,
    Ravel,
    Skip,
    linear,
)
from ._moments import (
    KernelState,
    SecondMoments,
    affine,
    as_gaussian,
    average_windows,
    map_moments,
    pool,
    with_arrays,
)


class Dense(AbstractLayer):
    """A dense layer. Variances are scalars, leaves to differentiate by and to sample.

    A variance may be a numpyro distribution: its prior, for `Regression`.

    Args:
        weight_variance: Of the weights; divided by the fan-in in the network.
        bias_variance: Of the biases.
    """

    weight_variance: Parameter
    bias_variance: Parameter

    def __init__(self, weight_variance: Number = 1.0, bias_variance: Number = 0.0):
        self.weight_variance = parameter("weight_variance", weight_variance, zero=True)
        self.bias_variance = parameter("bias_variance", bias_variance, zero=True)

    def moments(self, state: KernelState) -> KernelState:
        if state.cross.spatial:
            raise ValueError(
                f"`Dense` reads vectors; got {state.cross.spatial} axes of pixels. "
                "Put `Flatten()` or `GlobalAveragePooling()` before it."
            )
        new = map_moments(lambda m: affine(m, self.weight_variance, self.bias_variance), state)
        return as_gaussian(new, True)

    def finite(
        self, shape: ExampleShape, plan: FinitePlan, *, key: PRNGKey
    ) -> tuple[Linear, ExampleShape]:
        if shape.spatial:
            raise ValueError(
                f"`Dense` reads vectors; got pixels of shape {shape.spatial}. "
                "Put `Flatten()` or `GlobalAveragePooling()` before it."
            )
        return linear(shape, plan, (self.weight_variance, self.bias_variance), (), (), key=key)


class Conv(AbstractLayer):
    """A convolution with zero padding to keep the size ("SAME"), over any axes of space.

    Args:
        window: Pixels along each axis of space.
        stride: Steps along each axis; None is 1.
        weight_variance: Of the weights; divided by channels times pixels of the window.
        bias_variance: Of the biases.

    References:
        Novak et al. (2019), Bayesian deep convolutional networks with many channels are
        Gaussian processes, arXiv:1810.05148.
    """

    window: tuple[int, ...] = eqx.field(static=True)
    stride: tuple[int, ...] = eqx.field(static=True)
    weight_variance: Parameter
    bias_variance: Parameter

    def __init__(
        self,
        window: tuple[int, ...] = (3, 3),
        stride: tuple[int, ...] | None = None,
        weight_variance: Number = 1.0,
        bias_variance: Number = 0.0,
    ):
        self.window = sizes("window", window)
        self.stride = (1,) * len(self.window) if stride is None else sizes("stride", stride)
        self.weight_variance = parameter("weight_variance", weight_variance, zero=True)
        self.bias_variance = parameter("bias_variance", bias_variance, zero=True)
        if len(self.stride) != len(self.window):
            raise ValueError(
                f"`stride` must be as long as `window`, {len(self.window)}; got {stride}."
            )

    def moments(self, state: KernelState) -> KernelState:
        self._check(state.cross.spatial)

        def one(m: SecondMoments) -> SecondMoments:
            m = with_arrays(
                m, lambda x: average_windows(x, self.window, self.stride, pairs=m.pairs)
            )
            return affine(m, self.weight_variance, self.bias_variance)

        return as_gaussian(map_moments(one, state), True)

    def finite(
        self, shape: ExampleShape, plan: FinitePlan, *, key: PRNGKey
    ) -> tuple[Linear, ExampleShape]:
        self._check(len(shape.spatial))
        variances = self.weight_variance, self.bias_variance
        return linear(shape, plan, variances, self.window, self.stride, key=key)

    def _check(self, spatial: int) -> None:
        if spatial != len(self.window):
            raise ValueError(
                f"`Conv(window={self.window})` reads inputs with {len(self.window)} axes of "
                f"pixels and one of channels; got {spatial} axes of pixels."
            )


class Flatten(AbstractLayer):
    """All pixels in one vector; the kernel averages pairs of the same pixel."""

    def moments(self, state: KernelState) -> KernelState:
        if not state.cross.spatial:
            raise ValueError("`Flatten` reads images; got vectors. Leave it out.")
        cross, left, right = (
            pool(m, diagonal=True) for m in (state.cross, state.left, state.right)
        )
        return KernelState(cross, left, right, None, None, False)

    def finite(
        self, shape: ExampleShape, plan: FinitePlan, *, key: PRNGKey
    ) -> tuple[Ravel, ExampleShape]:
        size = int(np.prod(shape.spatial))
        return Ravel(), ExampleShape((), shape.channels * size, shape.is_input)


class GlobalAveragePooling(AbstractLayer):
    """The average over pixels; its kernel needs all pairs of pixels, in memory and time."""

    needs_pixel_pairs: ClassVar[bool] = True

    def moments(self, state: KernelState) -> KernelState:
        if state.left_pairs is None or state.right_pairs is None:
            raise ValueError("`GlobalAveragePooling` reads images; got vectors. Leave it out.")
        cross, left, right = (
            pool(m, diagonal=False) for m in (state.cross, state.left_pairs, state.right_pairs)
        )
        return KernelState(cross, left, right, None, None, state.gaussian)

    def finite(
        self, shape: ExampleShape, plan: FinitePlan, *, key: PRNGKey
    ) -> tuple[Average, ExampleShape]:
        return Average(), ExampleShape((), shape.channels, shape.is_input)


class Residual(AbstractLayer):
    """An input plus a branch of it with weights of its own; `branch` keeps the shape."""

    branch: AbstractLayer = eqx.field(converter=part("branch", AbstractLayer))

    def moments(self, state: KernelState) -> KernelState:
        new = self.branch.moments(state)
        if new.cross.nngp.shape != state.cross.nngp.shape:
            raise ValueError(
                "`branch` of `Residual` must keep the number of pixels (strides of 1, no "
                f"pooling); it maps moments of shape {state.cross.nngp.shape} to "
                f"{new.cross.nngp.shape}."
            )
        both = state.gaussian and new.gaussian
        # The flag is part of the tree's structure, which must be one for the sum.
        return jax.tree.map(jnp.add, as_gaussian(state, both), as_gaussian(new, both))

    def finite(
        self, shape: ExampleShape, plan: FinitePlan, *, key: PRNGKey
    ) -> tuple[Skip, ExampleShape]:
        branch, new = self.branch.finite(shape, plan, key=key)
        if new[:2] != shape[:2]:
            raise ValueError(
                f"`branch` of `Residual` must keep the shape of one example, {shape[:2]} "
                f"(pixels, channels); it gives {new[:2]}. Put a `Dense` or `Conv` before it, "
                "and end `branch` with one."
            )
        return Skip(branch), new


class Serial(AbstractLayer):
    """Layers in turn.

    Args:
        *layers: At least one.
    """

    layers: tuple[AbstractLayer, ...]

    def __init__(self, *layers: AbstractLayer):
        if not layers:
            raise ValueError("`layers` must hold at least one layer; got none.")
        self.layers = tuple(part("layers", AbstractLayer)(layer) for layer in layers)

    def moments(self, state: KernelState) -> KernelState:
        for layer in self.layers:
            state = layer.moments(state)
        return state

    def finite(
        self, shape: ExampleShape, plan: FinitePlan, *, key: PRNGKey
    ) -> tuple[FiniteSerial, ExampleShape]:
        made = []
        last = len(self.layers) - 1
        for i, (layer, layer_key) in enumerate(zip(self.layers, jr.split(key, last + 1))):
            hidden = plan if i == last else plan._replace(outputs=None)
            twin, shape = layer.finite(shape, hidden, key=layer_key)
            made.append(twin)
        return FiniteSerial(tuple(made)), shape
