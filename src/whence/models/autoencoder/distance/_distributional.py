"""The distributional sliced Wasserstein distance: directions from a learned law.

    DSW_p(C) = sup over laws s of directions with E|t't'| <= C of (E_{t ~ s} W_p(t)^p)^(1/p).

Here p = 2. The law is the image of the uniform one under a network, the slicer, which
maximises

    (mean_l W_2(f(t_l))^2)^(1/2) - penalty * mean_{l,l'} |f(t_l)'f(t_l')|.

The penalty is in the units of the distance, means over samples: the value 100 of the authors'
code, where W_2^2 is a sum over n = 2048 rows, is 100 / sqrt(2048) = 2.2 here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from ....core import AnyArray, PRNGKey, Scalar, number, positive, whole
from ....core._cache import remembering
from ....core._key import seeded
from ..._fit import minimised
from ._sliced import Directions, check_samples, directions, powers, unit

PENALTY = 2.2


class Slicer(eqx.Module):
    """A map of the unit sphere to itself: a layer or two, and a division by the length.

    Attributes:
        layers: One linear layer, as published; or two with tanh between them.
    """

    layers: tuple[eqx.nn.Linear, ...]

    @classmethod
    def make(cls, dim: int, hidden: int, dtype: Any, *, key: PRNGKey) -> "Slicer":
        """Return a slicer of directions with random weights; `hidden` 0 for a linear one."""
        depth = 1 if hidden else 0
        return cls(eqx.nn.MLP(dim, dim, hidden, depth, dtype=dtype, key=key).layers)

    def __call__(self, along: Directions) -> Directions:
        """Return the images of directions."""
        moved = jax.vmap(self.layers[0])(along)
        if len(self.layers) == 1:
            return unit(moved)
        # With a hidden layer it starts near the identity: directions all over the sphere.
        return unit(along + jax.vmap(self.layers[1])(jnp.tanh(moved)))


def objective(power_along: Callable[[Array], Array], mapped: Directions) -> tuple[Array, Array]:
    """Return the distance along directions, and the mean of `|t't'|` over all pairs of them.

    `power_along` is W_2^2 as a function of directions.
    """
    # The square root has no slope at 0.
    power = jnp.maximum(power_along(mapped).mean(), jnp.finfo(mapped.dtype).eps ** 2)
    return jnp.sqrt(power), jnp.abs(mapped @ mapped.T).mean()


def loss(power_along: Callable[[Array], Array], mapped: Directions, penalty: float) -> Scalar:
    """Return what a slicer minimises."""
    distance, concentration = objective(power_along, mapped)
    return penalty * concentration - distance


class Distributional(NamedTuple):
    """A distance over images of fresh directions, a lower bound at its `concentration`.

    That is the mean of `|t't'|` of directions, the constraint C: compare only at the same.
    """

    distance: float
    concentration: float
    slicer: Slicer


def maximise(
    power_along: Callable[[Array], Array], dim: int, dtype: Any, search: tuple, *, key: PRNGKey
) -> tuple[tuple[Array, Array], Slicer]:
    """Train a slicer from the start, on fresh directions at each step; traced.

    `search` are numbers of directions and steps, penalty, hidden width and learning rate.
    """
    projections, steps, penalty, hidden, rate = search
    key_slicer, key_run, key_last = jr.split(key, 3)
    slicer = Slicer.make(dim, hidden, dtype, key=key_slicer)
    along = lambda key: directions(projections, dim, dtype, key=key)

    def of_step(slicer, i):
        return loss(power_along, slicer(along(jr.fold_in(key_run, i))), penalty)

    slicer = minimised(of_step, slicer, steps, rate, jnp.arange(steps))
    return objective(power_along, slicer(along(key_last))), slicer


@remembering
def _distributional(x, y, key, search):
    return maximise(lambda t: powers(x, y, t), x.shape[1], x.dtype, search, key=key)


@seeded
def distributional_sliced_wasserstein(
    x: AnyArray,
    y: AnyArray,
    *,
    key: PRNGKey,
    projections: int = 500,
    steps: int = 300,
    penalty: float | int = PENALTY,
    hidden: int = 0,
    learning_rate: float | int = 5e-3,
) -> Distributional:
    """Estimate the distributional sliced Wasserstein distance of two samples.

    Args:
        x: Sample, `(n, ...)`; further axes are flattened.
        y: Sample, `(m, ...)`.
        key: A typed key.
        projections: Directions.
        steps: Of Adam on the slicer.
        penalty: On directions that are alike, in the units of the distance. At 0 the largest
            is the max-sliced distance; the larger, the more the directions spread.
        hidden: Width of a hidden layer of the slicer; 0 for a linear one, as published,
            which cannot send directions to two places that are not opposite.
        learning_rate: Of Adam, falling to 0.

    References:
        Nguyen, Ho, Pham and Bui (2021), Distributional sliced-Wasserstein, arXiv:2002.07367.
    """
    x, y = check_samples(x, y)
    search = (
        whole("projections", least=2)(projections),
        whole("steps", least=1)(steps),
        number("penalty", least=0)(penalty),
        whole("hidden", least=0)(hidden),
        positive("learning_rate")(learning_rate),
    )
    seen, slicer = _distributional(x, y, key, search)
    return Distributional(float(seen[0]), float(seen[1]), slicer)
