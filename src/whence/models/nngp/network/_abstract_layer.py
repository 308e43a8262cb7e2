"""The description of a network: what it is in the limit, and a finite one of any width."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ....core._convert import part, whole
from ....core._key import seeded
from ....core._types import AnyArray, PRNGKey
from .._parameter import require_values
from .._precision import check_rounding
from ._finite import ExampleShape, FinitePlan
from ._initialisations import AbstractInitialisation, Independent
from ._moments import KernelState, inputs_state
from ._tiles import Kernels, tiled


class AbstractLayer(eqx.Module):
    """A layer of infinitely many units, or a network of such layers.

    The kernels are those of one output of the network with Gaussian weights in NTK
    parameterisation, as its width grows: `nngp` the covariance of outputs at the start,
    `ntk` the tangent kernel. Variances of weights and biases are array leaves, so kernels
    can be differentiated by them; the architecture is static.

    References:
        Lee, Bahri, Novak, Schoenholz, Pennington, Sohl-Dickstein (2018), Deep neural networks
        as Gaussian processes, arXiv:1711.00165. Jacot, Gabriel, Hongler (2018), Neural tangent
        kernel, arXiv:1806.07572.
    """

    @abc.abstractmethod
    def moments(self, state: KernelState) -> KernelState:
        """Map second moments of what the layer reads to those of what it gives."""

    @abc.abstractmethod
    def finite(
        self, shape: ExampleShape, plan: FinitePlan, *, key: PRNGKey
    ) -> tuple[eqx.Module, ExampleShape]:
        """Make the finite twin with random weights.

        Args:
            shape: Of one example that it reads.
            plan: Width and initialisation.
            key: Random key.
        """

    def kernel(self, x1: AnyArray, x2: AnyArray | None = None) -> Kernels:
        """Return both kernels, in the precision of the inputs.

        Args:
            x1: Inputs, shape `(rows, features)`, or `(rows, *spatial, channels)` for images.
            x2: Inputs of the other axis; None is `x1`, and half the work.

        Returns:
            `(nngp, ntk)`, each of shape `(rows, columns)`.

        Raises:
            ValueError: If the inputs do not fit each other or the description.
        """
        nngp, ntk = _kernel(self, *_check_inputs(x1, x2), ntk=True)
        return Kernels(nngp, ntk)

    def nngp(self, x1: AnyArray, x2: AnyArray | None = None) -> Array:
        """Return the covariance kernel only, as in `kernel`.

        Args:
            x1: Inputs, shape `(rows, features)`, or `(rows, *spatial, channels)` for images.
            x2: Inputs of the other axis; None is `x1`, and half the work.

        Raises:
            ValueError: If the inputs do not fit each other or the description.
        """
        return _kernel(self, *_check_inputs(x1, x2), ntk=False)[0]

    def diagonal(self, x: AnyArray) -> Kernels:
        """Return both kernels of each input with itself, shape `(rows,)`.

        Args:
            x: Inputs, shape `(rows, features)`, or `(rows, *spatial, channels)` for images.

        Raises:
            ValueError: If the inputs do not fit the description.
        """
        return _diagonal(self, _check_inputs(x, None)[0])

    @seeded
    def network(
        self,
        width: int,
        inputs: int | tuple[int, ...],
        *,
        key: PRNGKey,
        outputs: int = 1,
        initialisation: AbstractInitialisation = Independent(),  # noqa: B008, immutable
    ) -> eqx.Module:
        """Make a finite network with random weights: a function of one example.

        The last `Dense` has `outputs` units, every other `Dense` and `Conv` has `width`.

        Args:
            width: Units of a hidden layer (channels of a convolution).
            inputs: Features of one example, or its shape `(*spatial, channels)`.
            key: Random key.
            outputs: Numbers that it gives.
            initialisation: Law of the weights of all layers but the first.

        Returns:
            An Equinox module in NTK parameterisation, from one example to `(outputs,)`.

        Raises:
            ValueError: If the shape does not fit the description, or a number is below 1.
        """
        require_values(self, "A finite network")
        width, outputs = whole("width", least=1)(width), whole("outputs", least=1)(outputs)
        part("initialisation", AbstractInitialisation)(initialisation)
        shape = inputs if isinstance(inputs, tuple | list) else (inputs,)
        *spatial, channels = sizes("inputs", shape)
        shape = ExampleShape(tuple(spatial), channels, True)
        made, out = self.finite(shape, FinitePlan(width, outputs, initialisation), key=key)
        if out[:2] != ((), outputs):
            raise ValueError(
                "A description of a network must end with `Dense`, its readout; the last layer "
                f"gives pixels and channels {out[:2]}."
            )
        return made


def sizes(name: str, values: Any) -> tuple[int, ...]:
    """Return lengths along axes, at least one, as whole numbers."""
    if not isinstance(values, tuple | list) or not values:
        raise ValueError(f"`{name}` must be a tuple of whole numbers; got {values!r}.")
    return tuple(whole(name, least=1)(value) for value in values)


@eqx.filter_jit
def _kernel(layer: AbstractLayer, x1: Array, x2: Array | None, *, ntk: bool):
    require_values(layer, "A kernel")

    def moments(state: KernelState) -> KernelState:
        return _vectors(layer.moments(state))

    return tiled(moments, x1, x2, pairs=_needs_pairs(layer), ntk=ntk)


@eqx.filter_jit
def _diagonal(layer: AbstractLayer, x: Array) -> Kernels:
    require_values(layer, "A kernel")

    def one(row: Array) -> Kernels:
        state = inputs_state(row[None], row[None], pairs=_needs_pairs(layer), ntk=True)
        own = _vectors(layer.moments(state)).left
        assert own.ntk is not None
        return Kernels(own.nngp[0], own.ntk[0])

    return jax.lax.map(one, x, batch_size=128)


def _needs_pairs(layer: AbstractLayer) -> bool:
    def is_pooling(node) -> bool:
        return getattr(node, "needs_pixel_pairs", False)

    return any(is_pooling(leaf) for leaf in jax.tree.leaves(layer, is_leaf=is_pooling))


def _vectors(state: KernelState) -> KernelState:
    if state.cross.spatial:
        raise ValueError(
            "A description must end with vectors: put `Flatten()` or `GlobalAveragePooling()` "
            f"and `Dense()` last. It ends with {state.cross.spatial} axes of pixels."
        )
    return state


def _check_inputs(x1: AnyArray, x2: AnyArray | None) -> tuple[Array, Array | None]:
    first = _check_one("x" if x2 is None else "x1", x1)
    if x2 is None:
        return first, None
    second = _check_one("x2", x2)
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            "`x1` and `x2` must have examples of one shape; got "
            f"{first.shape[1:]} and {second.shape[1:]}."
        )
    dtype = jnp.promote_types(first.dtype, second.dtype)
    return first.astype(dtype), second.astype(dtype)


def _check_one(name: str, x: AnyArray) -> Array:
    if not isinstance(x, jax.Array | np.ndarray):
        x = np.asarray(x)
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"`{name}` must have shape (rows, features) or (rows, *spatial, channels) with no "
            f"axis of length 0; got {x.shape}."
        )
    if not isinstance(x, Tracer):
        finite = np.isfinite(np.asarray(x)).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"`{name}` must be finite; row {int(np.argmin(finite))} is not, nor are "
                f"{int(np.sum(~finite)) - 1} others."
            )
        check_rounding(name, x)
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
