"""The distributional sliced Wasserstein distance: directions from a learned law.

    DSW_p(C) = sup over laws s of directions with E|t't'| <= C of (E_{t ~ s} W_p(t)^p)^(1/p).

The law is the image of the uniform one under a network, the slicer, which maximises

    (mean_l W_p(f(t_l))^p)^(1/p) - penalty * mean_{l,l'} |f(t_l)'f(t_l')|.

The penalty is in the units of the distance, means over samples: the value 100 of the authors'
code, where W_p^p is a sum over n = 2048 rows, is 100 / sqrt(2048) = 2.2 here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array

from ....core._cache import remembering
from ....core._convert import number, positive, whole
from ....core._key import seeded
from ....core._types import AnyArray, PRNGKey
from ._sliced import Directions, check_samples, directions, powers, root, unit

PENALTY = 2.2


class Slicer(eqx.Module):
    """A map of the unit sphere to itself: a layer or two, and a division by the length."""

    network: eqx.nn.Linear | eqx.nn.MLP

    @classmethod
    def make(cls, dim: int, hidden: int, *, key: PRNGKey) -> "Slicer":
        """Return a slicer with random weights.

        Args:
            dim: Of the directions.
            hidden: Width of a hidden layer; 0 for one linear layer, as published.
            key: A typed key.
        """
        if hidden == 0:
            return cls(eqx.nn.Linear(dim, dim, key=key))
        return cls(eqx.nn.MLP(dim, dim, hidden, 1, jax.nn.tanh, key=key))

    def __call__(self, along: Directions) -> Directions:
        """Return the images of directions."""
        moved = jax.vmap(self.network)(along)
        # With a hidden layer it starts near the identity: directions all over the sphere.
        return unit(moved if isinstance(self.network, eqx.nn.Linear) else along + moved)


class Objective(NamedTuple):
    """What a slicer maximises.

    Attributes:
        distance: `(mean W_p^p)^(1/p)` over its directions.
        concentration: Mean of `|t't'|` over all pairs of them, those of equal ones too.
    """

    distance: Array
    concentration: Array


def objective(
    power_along: Callable[[Array], Array], slicer: Slicer, along: Directions, p: float
) -> Objective:
    """Return the distance that a slicer sees.

    Args:
        power_along: From directions to W_p^p along each.
        slicer: The slicer.
        along: Directions to be mapped.
        p: Order.
    """
    mapped = slicer(along)
    return Objective(root(power_along(mapped).mean(), p), jnp.abs(mapped @ mapped.T).mean())


def improve(
    power_along: Callable[[Array], Array],
    arrays: Any,
    rest: Any,
    state: Any,
    along: Callable[[Array], Directions],
    *,
    rule: optax.GradientTransformation,
    steps: int,
    penalty: float,
    p: float,
) -> tuple[Any, Any]:
    """Make steps of gradient ascent on a slicer; traced.

    Args:
        power_along: From directions to W_p^p along each.
        arrays: Those of the slicer.
        rest: What else it has.
        state: Of the rule.
        along: From the number of a step to directions.
        rule: Of optax.
        steps: How many.
        penalty: See the module.
        p: Order.

    Returns:
        The new arrays, and the state of the rule.
    """

    def step(i, carry):
        def loss(arrays):
            seen = objective(power_along, eqx.combine(arrays, rest), along(i), p)
            return penalty * seen.concentration - seen.distance

        arrays, state = carry
        update, state = rule.update(jax.grad(loss)(arrays), state)
        return optax.apply_updates(arrays, update), state

    return jax.lax.fori_loop(0, steps, step, (arrays, state))


class Distributional(NamedTuple):
    """A distributional sliced distance.

    Attributes:
        distance: `(mean W_p^p)^(1/p)` over the directions of the slicer, on fresh ones: a
            lower bound of the largest at this `concentration`.
        concentration: Mean of `|t't'|` of its directions, the constraint C. Compare it only
            with distances at the same.
        slicer: The slicer.
    """

    distance: float
    concentration: float
    slicer: Slicer


def blank_slicer(dim: int, hidden: int) -> Slicer:
    """Return what of a slicer is no array."""
    shapes = eqx.filter_eval_shape(lambda key: Slicer.make(dim, hidden, key=key), jr.key(0))
    return eqx.filter(shapes, lambda leaf: not isinstance(leaf, jax.ShapeDtypeStruct))


def slicer_arrays(dim: int, hidden: int, dtype: Any, *, key: PRNGKey) -> Any:
    """Return the arrays of a slicer with random weights."""
    arrays = eqx.filter(Slicer.make(dim, hidden, key=key), eqx.is_array)
    return jax.tree.map(lambda v: v.astype(dtype), arrays)


def maximise(
    power_along: Callable[[Array], Array],
    dim: int,
    dtype: Any,
    *,
    key: PRNGKey,
    num: int,
    steps: int,
    hidden: int,
    penalty: float,
    learning_rate: float,
    p: float,
) -> tuple[Objective, Any]:
    """Train a slicer from the start, on fresh directions at each step; traced."""
    key_slicer, key_run, key_last = jr.split(key, 3)
    arrays, rest = slicer_arrays(dim, hidden, dtype, key=key_slicer), blank_slicer(dim, hidden)
    rule = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    along = lambda i: directions(num, dim, dtype, key=jr.fold_in(key_run, i))
    arrays, _ = improve(
        power_along,
        arrays,
        rest,
        rule.init(arrays),
        along,
        rule=rule,
        steps=steps,
        penalty=penalty,
        p=p,
    )
    fresh = directions(num, dim, dtype, key=key_last)
    return objective(power_along, eqx.combine(arrays, rest), fresh, p), arrays


@remembering
def _distributional(x, y, key, num, steps, hidden, penalty, learning_rate, p):
    return maximise(
        lambda t: powers(x, y, t, p),
        x.shape[1],
        x.dtype,
        key=key,
        num=num,
        steps=steps,
        hidden=hidden,
        penalty=penalty,
        learning_rate=learning_rate,
        p=p,
    )


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
    p: float | int = 2,
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
        p: Order, at least 1.

    References:
        Nguyen, Ho, Pham and Bui (2021), Distributional sliced-Wasserstein and applications to
        generative modeling, ICLR, arXiv:2002.07367, equations 1 and 2.
    """
    x, y = check_samples(x, y)
    num, steps = whole("projections", least=2)(projections), whole("steps", least=1)(steps)
    penalty, hidden = number("penalty", least=0)(penalty), whole("hidden", least=0)(hidden)
    rate, p = positive("learning_rate")(learning_rate), number("p", least=1)(p)
    seen, arrays = _distributional(x, y, key, num, steps, hidden, penalty, rate, p)
    slicer = eqx.combine(arrays, blank_slicer(x.shape[1], hidden))
    return Distributional(float(seen.distance), float(seen.concentration), slicer)
