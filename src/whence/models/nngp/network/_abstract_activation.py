"""How any activation acts on moments; the functions themselves are in `_activations`."""

from __future__ import annotations

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ....core._types import PRNGKey
from ._abstract_layer import AbstractLayer
from ._finite import ExampleShape, FinitePlan
from ._moments import KernelState, SecondMoments, pixel_diagonal


class AbstractActivation(AbstractLayer):
    """A function of one unit, with its two kernel maps."""

    @abc.abstractmethod
    def __call__(self, x: Array) -> Array:
        """Apply the function to every unit."""

    @abc.abstractmethod
    def pair(self, q1: Array, q2: Array, c: Array) -> tuple[Array, Array]:
        """Return `(k, kdot)` of two units.

        Args:
            q1: Variance of the first, broadcast against the others.
            q2: Variance of the second.
            c: Covariance.
        """

    @abc.abstractmethod
    def single(self, q: Array) -> tuple[Array, Array]:
        """Return `(k, kdot)` of a unit with itself: c = q1 = q2."""

    def moments(self, state: KernelState) -> KernelState:
        if not state.gaussian:
            raise ValueError(
                f"`{type(self).__name__}` must read Gaussian units: put a `Dense` or `Conv` "
                "before it. Inputs, what an activation or `Flatten` gave, and a `Residual` "
                "around them are not Gaussian, and their kernel is not known."
            )
        q1, q2 = state.left.nngp, state.right.nngp
        left, right = self._own(state.left), self._own(state.right)
        cross = self._cross(state.cross, q1[:, None], q2[None])
        left_pairs = self._own_pairs(state.left_pairs, q1, left)
        right_pairs = self._own_pairs(state.right_pairs, q2, right)
        return KernelState(cross, left, right, left_pairs, right_pairs, False)

    def finite(
        self, shape: ExampleShape, plan: FinitePlan, *, key: PRNGKey
    ) -> tuple[eqx.Module, ExampleShape]:
        """Return the activation, which is its own finite twin."""
        return self, shape

    def _own(self, own: SecondMoments) -> SecondMoments:
        return _by_chain_rule(own, *self.single(own.nngp))

    def _cross(self, cross: SecondMoments, q1: Array, q2: Array) -> SecondMoments:
        """Map pairs; `q1` and `q2` have their axes but for the pixels of the other."""
        if cross.pairs:
            ones = (1,) * cross.spatial
            batch = q2.ndim - cross.spatial
            q1 = q1.reshape(*q1.shape, *ones)
            q2 = q2.reshape(*q2.shape[:batch], *ones, *q2.shape[batch:])
        return _by_chain_rule(cross, *self.pair(q1, q2, cross.nngp))

    def _own_pairs(
        self, pairs: SecondMoments | None, q: Array, own: SecondMoments
    ) -> SecondMoments | None:
        if pairs is None:
            return None
        new = self._cross(pairs, q, q)
        same = pixel_diagonal(q.shape[1:])
        ones = (1,) * pairs.spatial

        def put(diagonal: Array, whole: Array) -> Array:
            return jnp.where(same, diagonal.reshape(*diagonal.shape, *ones), whole)

        ntk = None if new.ntk is None or own.ntk is None else put(own.ntk, new.ntk)
        return SecondMoments(put(own.nngp, new.nngp), ntk, new.spatial, True)


def _by_chain_rule(old: SecondMoments, k: Array, kdot: Array) -> SecondMoments:
    ntk = None if old.ntk is None else kdot * old.ntk
    return SecondMoments(k, ntk, old.spatial, old.pairs)
