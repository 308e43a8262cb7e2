"""Layers of flows made by flowjax: the one place that imports it."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PyTree

from ...core._convert import one_of, whole
from ...core._dtype import relaxed
from ...core._types import PRNGKey, Scalar
from ._family import Vector
from ._flow import AbstractLayer

TRANSFORMS = ("affine", "spline")
KNOTS, INTERVAL = 8, 4.0  # of splines: noise beyond 4 is left as it is


class AbstractFlowjaxLayer(AbstractLayer):
    """A bijection of flowjax, and the reverse order of coordinates after it.

    Attributes:
        transform: `"affine"`, or `"spline"`, rational quadratic.
        width: Of the network's hidden layers.
        hidden: How many there are.
    """

    transform: eqx.AbstractVar[str]
    width: eqx.AbstractVar[int]
    hidden: eqx.AbstractVar[int]

    @abc.abstractmethod
    def make(self, dim: int, transformer: Any, *, key: PRNGKey) -> Any:
        """Return the bijection."""

    def init(self, like: Vector, *, key: PRNGKey) -> PyTree:
        if like.size < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 latents, some being transformed given "
                f"others; got {like.size}."
            )
        arrays, _ = eqx.partition(self._make(like.size, key), eqx.is_inexact_array)
        return tuple(leaf.astype(like.dtype) for leaf in jax.tree.leaves(arrays))

    def apply(self, params: PyTree, x: Vector) -> tuple[Vector, Scalar]:
        y, log_det = self.plain(params, x)
        return y[::-1], log_det

    def plain(self, params: PyTree, x: Vector) -> tuple[Vector, Scalar]:
        """As `apply`, in the order of coordinates of `x`."""
        # Made anew for its masks and functions; its own parameters are never computed.
        arrays, rest = eqx.partition(self._make(x.size, jr.key(0)), eqx.is_inexact_array)
        arrays = jax.tree.unflatten(jax.tree.structure(arrays), params)
        with relaxed():
            y, log_det = eqx.combine(arrays, rest).transform_and_log_det(x)
        return y.astype(x.dtype), log_det.astype(x.dtype)

    def _make(self, dim: int, key: PRNGKey) -> Any:
        bijections = library()
        with relaxed():
            if self.transform == "affine":
                transformer = bijections.Affine()
            else:
                transformer = bijections.RationalQuadraticSpline(knots=KNOTS, interval=INTERVAL)
            return self.make(dim, transformer, key=key)


class Coupling(AbstractFlowjaxLayer):
    """Half of the coordinates transformed, by a network of the other half.

    Attributes:
        transform: `"affine"`, or `"spline"`, rational quadratic.
        width: Of the network's hidden layers.
        hidden: How many there are.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP,
        arXiv:1605.08803. Durkan, Bekasov, Murray, Papamakarios (2019), Neural spline flows,
        arXiv:1906.04032.
    """

    transform: str = eqx.field(default="affine", converter=one_of("transform", TRANSFORMS))
    width: int = eqx.field(static=True, default=32, converter=whole("width", least=1))
    hidden: int = eqx.field(static=True, default=1, converter=whole("hidden", least=1))

    def make(self, dim: int, transformer: Any, *, key: PRNGKey) -> Any:
        return library().Coupling(
            key,
            transformer=transformer,
            untransformed_dim=dim // 2,
            dim=dim,
            nn_width=self.width,
            nn_depth=self.hidden,
        )

    def push(self, params: PyTree, x: Vector, force: Vector) -> Vector:
        # J is [[1, 0], [A, D]] with diagonal D: the transformed half of the force is divided
        # by D, and A' of it is taken from the other.
        half = x.size // 2
        (y, log_det), back = jax.vjp(lambda x: self.plain(params, x), x)
        zero, moved = jnp.zeros_like(log_det), (jnp.arange(x.size) >= half).astype(x.dtype)
        force = force - back((jnp.zeros_like(y), jnp.ones_like(log_det)))[0]
        diagonal = back((moved, zero))[0]
        own = moved * force / jnp.where(moved > 0, diagonal, 1)
        rest = force - back((own, zero))[0]
        return jnp.where(moved > 0, own, rest)[::-1]


class Autoregressive(AbstractFlowjaxLayer):
    """Each coordinate transformed by a network of those before it, masked.

    A draw takes one pass of the network (an inverse autoregressive flow); its force takes
    the Jacobian, one pass for each coordinate.

    Attributes:
        transform: `"affine"`, or `"spline"`, rational quadratic.
        width: Of the network's hidden layers.
        hidden: How many there are.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling (2016), Improved variational
        inference with inverse autoregressive flow, arXiv:1606.04934.
    """

    transform: str = eqx.field(default="affine", converter=one_of("transform", TRANSFORMS))
    width: int = eqx.field(static=True, default=32, converter=whole("width", least=1))
    hidden: int = eqx.field(static=True, default=1, converter=whole("hidden", least=1))

    def make(self, dim: int, transformer: Any, *, key: PRNGKey) -> Any:
        return library().MaskedAutoregressive(
            key, transformer=transformer, dim=dim, nn_width=self.width, nn_depth=self.hidden
        )

    def push(self, params: PyTree, x: Vector, force: Vector) -> Vector:
        plain = lambda x: self.plain(params, x)
        force = force - jax.grad(lambda x: plain(x)[1])(x)
        jacobian = jax.jacfwd(lambda x: plain(x)[0])(x)
        solved = jax.scipy.linalg.solve_triangular(jacobian, force, trans=1, lower=True)
        return solved[::-1]


def library() -> Any:
    """Return flowjax's bijections, or say how to install them."""
    try:
        from flowjax import bijections
    except ImportError as error:
        raise ImportError(
            "`Coupling` and `Autoregressive` need flowjax, which could not be imported "
            f"({error}). Install it with `pip install whence[flows]`."
        ) from error
    return bijections
