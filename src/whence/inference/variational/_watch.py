"""What is watched while a fit runs: noise of its gradient, its mean, whether it diverges."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...core._types import Scalar

MEMORY = 0.98  # of the gradient's moments: about the last 50 updates
LOOK = 50  # updates between looks at the ELBO of one key
LOOKS = 3  # in a row that a fit is worse than where it began, before it is stopped


class GradientNoise(eqx.Module):
    """Moving moments of the gradient's entries."""

    mean: Float[Array, " entry"]
    square: Float[Array, " entry"]

    @staticmethod
    def start(step: PyTree) -> "GradientNoise":
        """Return the moments before the first update."""
        zero = jnp.zeros_like(ravel_pytree(step)[0])
        return GradientNoise(zero, zero)

    def after(self, gradient: PyTree) -> "GradientNoise":
        """Return the moments with one gradient more."""
        flat, _ = ravel_pytree(gradient)
        add = lambda old, new: MEMORY * old + (1 - MEMORY) * new
        return GradientNoise(add(self.mean, flat), add(self.square, flat**2))

    @property
    def signal(self) -> Scalar:
        """The mean over entries of signal to noise; of noise alone it is about 0.08."""
        spread = jnp.sqrt(jnp.maximum(self.square - self.mean**2, 0))
        moves = spread > 0
        ratio = jnp.abs(self.mean) / jnp.where(moves, spread, 1)
        count = jnp.maximum(jnp.sum(moves, dtype=ratio.dtype), 1)
        return jnp.sum(jnp.where(moves, ratio, 0)) / count


class Watch(eqx.Module):
    """The fit's ELBO by one key, and the best parameters that were seen with it.

    Attributes:
        first: The ELBO at the first look, in nats.
        best: The largest.
        params: Parameters there.
        bad: Looks in a row that were worse than the first.
        good_at: Update at which the best was seen.
        left_at: Update at which the fit was given up; -1 if it was not.
    """

    first: Scalar
    best: Scalar
    params: PyTree
    bad: Int[Array, ""]
    good_at: Int[Array, ""]
    left_at: Int[Array, ""]

    @staticmethod
    def start(params: PyTree, dtype: Any) -> "Watch":
        """Return a watch that has seen nothing."""
        low, none = jnp.full((), -jnp.inf, dtype), jnp.full((), -1, jnp.int32)
        return Watch(low, low, params, jnp.zeros((), jnp.int32), none, none)

    def after(self, elbo: Scalar, params: PyTree, counter: Int[Array, ""]) -> "Watch":
        """Return the watch after a look.

        Args:
            elbo: Of the fit by the key of all looks.
            params: Of the fit.
            counter: Number of the update.
        """
        elbo = jnp.where(jnp.isnan(elbo), -jnp.inf, elbo)
        first = jnp.where(jnp.isfinite(self.first), self.first, elbo)
        # Ten nats and a tenth more than where it began: no noise of updates takes a fit there.
        floor = first - 10 - 0.1 * jnp.abs(first)
        is_bad = ~(elbo >= floor)
        better = elbo > self.best
        kept = jax.tree.map(lambda a, b: jnp.where(better, a, b), params, self.params)
        bad = jnp.where(is_bad, self.bad + 1, 0)
        leaves = (bad >= LOOKS) & (self.left_at < 0) & self.has_seen
        return Watch(
            first,
            jnp.maximum(elbo, self.best),
            kept,
            bad,
            jnp.where(better, counter, self.good_at),
            jnp.where(leaves, counter, self.left_at),
        )

    @property
    def has_seen(self) -> Bool[Array, ""]:
        """Whether there is a good iterate."""
        return jnp.isfinite(self.best)


def averaged(mean: PyTree, params: PyTree, counter: Int[Array, ""], begin: int) -> PyTree:
    """Return the mean of parameters since update `begin`, this one counted in.

    References:
        Polyak, Juditsky (1992), Acceleration of stochastic approximation by averaging,
        doi:10.1137/0330046.
    """
    share = 1 / jnp.maximum(counter - begin + 1, 1)
    return jax.tree.map(lambda m, p: m + share.astype(p.dtype) * (p - m), mean, params)
