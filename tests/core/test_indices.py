"""Indices that data hold: refused beyond their axis wherever they are used, and only there.

Right answers are Python's own: an index is right if it is from 0 to the length less one.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import whence as wh
from whence.core._indices import check_indices
from whence.core._target import AbstractTarget

HELD = np.array([0, 1, 7])


class Reads(AbstractTarget):
    """A density that reads entries of a latent `a` of shape (3,), `b` of shape (3, 4)."""

    g: jax.Array
    h: jax.Array
    read: object = eqx.field(static=True)

    def init(self, *, key):
        return {"a": jax.random.normal(key, (3,)), "b": jnp.ones((3, 4))}

    def log_density(self, position):
        return jnp.sum(self.read(position["a"], position["b"], self.g, self.h))

    def constrain(self, position):
        return position


def scanned(a, b, g, h):
    return jax.lax.scan(lambda total, i: (total + a[i], None), 0.0, g)[0]


def counted(a, b, g, h):
    return jax.lax.fori_loop(0, 3, lambda i, total: total + a[g[i]], 0.0)


def until_the_end(a, b, g, h):
    step = lambda s: (s[0] + 1, s[1] + a[g[s[0]]])
    return jax.lax.while_loop(lambda s: s[0] < 3, step, (0, 0.0))[1]


def flagged(a, b, g, h):
    """A loop that begins with a plain `True`, as those of differential equations do."""
    step = lambda s: (s[1] < 2, s[1] + 1, s[2] + a[g[s[1]]])
    loop = lambda a: jax.lax.while_loop(lambda s: s[0], step, (True, 0, 0.0))[2]
    return jax.jit(loop)(a)


def chosen(a, b, g, h):
    return jax.lax.cond(a[0] > 0, lambda: jnp.sum(a[g]), lambda: 0.0)


READ = {
    "plain": lambda a, b, g, h: a[g],
    "take": lambda a, b, g, h: jnp.take(a, g),
    "along": lambda a, b, g, h: jnp.take_along_axis(b, g[:, None], axis=0),
    "twice": lambda a, b, g, h: b[g, g],
    "jit": lambda a, b, g, h: jax.jit(lambda a: a[g])(a),
    "checkpoint": lambda a, b, g, h: jax.checkpoint(lambda a: a[g])(a),
    "vmap": lambda a, b, g, h: jax.vmap(lambda i: a[i])(g),
    "scan": scanned,
    "vmap of scan": lambda a, b, g, h: jax.vmap(lambda g: scanned(a, b, g, h))(g[None]),
    "fori_loop": counted,
    "while_loop": until_the_end,
    "flag": flagged,
    "cond": chosen,
    "segment_sum": lambda a, b, g, h: jax.ops.segment_sum(a, g, 3),
    "table": lambda a, b, g, h: a[jnp.array([2, 1, 0])[g]],
    "slice": lambda a, b, g, h: jax.lax.dynamic_slice(a, (g[2],), (1,)),
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_indices_beyond_the_axis_are_refused_wherever_they_are_used(read):
    make = lambda g: Reads(jnp.asarray(g), jnp.zeros(3, int), read)
    check_indices(make([0, 1, 2]))
    for wrong in (7, 3, -1):
        message = rf"`g` of the target.*from 0 to 2.*length 3; got {wrong} at index 2"
        with pytest.raises(ValueError, match=message):
            check_indices(make([0, 1, wrong]))


def test_the_input_the_value_and_the_axis_are_named():
    two = Reads(jnp.array([0, 1, 2]), jnp.array([0, 4, 1]), lambda a, b, g, h: b[g, h])
    with pytest.raises(ValueError, match=r"`h` of.*from 0 to 3.*length 4; got 4 at index 1"):
        check_indices(two)
    less = Reads(jnp.array([1, 2, 4]), two.h, lambda a, b, g, h: a[g - 1])
    with pytest.raises(ValueError, match=r"`g`.*got 3, made of 4 at index 2"):
        check_indices(less)
    held = Reads(two.g, two.h, lambda a, b, g, h: a[HELD])
    with pytest.raises(ValueError, match=r"`HELD` must give.*from 0 to 2.*got 7"):
        check_indices(held)


def test_indices_in_the_code_itself():
    """Negative ones count from the end; Python's own are right, JAX takes what is nearest."""
    make = lambda read: Reads(jnp.arange(3), jnp.zeros(3, int), lambda a, b, g, h: read(a, b))
    for right in (lambda a, b: a[-3], lambda a, b: a[jnp.array([-1, 2])], lambda a, b: b[2, 3]):
        check_indices(make(right))
    check_indices(make(lambda a, b: jnp.where(jnp.arange(2) < 1, a[jnp.array([0, 3])], 0.0)))
    wrong = [
        (lambda a, b: a[3], "-3 to 2 .* length 3; got 3"),
        (lambda a, b: a[-4], "-3 to 2 .* length 3; got -4"),
        (lambda a, b: b[:, 4], "-4 to 3 .* length 4; got 4"),
        (lambda a, b: jnp.take(a, jnp.array([0, 7])), "length 3; got 7"),
        (lambda a, b: a.at[3].set(0.0), "length 3; got 3"),
    ]
    for read, message in wrong:
        with pytest.raises(ValueError, match=f"An index in the code must be from .*{message}"):
            check_indices(make(read))


class Eight(wh.Model):
    theta: Any = wh.latent(dist.Normal(0.0, 1.0), shape=8)

    def likelihood(self):
        return dist.Normal(self.theta, 1.0)


class Ninth(Eight):
    @wh.derived
    def last(self):
        return self.theta[8]


def test_derived_values_and_functions_of_a_posterior(key):
    with pytest.raises(ValueError, match="index in the code .* length 8; got 8"):
        wh.condition(Ninth(), np.zeros(8))
    posterior = wh.Posterior.from_draws(
        wh.condition(Eight(), np.zeros(8)), {"theta": np.arange(16.0).reshape(1, 2, 8)}
    )
    np.testing.assert_array_equal(posterior.map(lambda m: m.theta[7])[0], [7.0, 15.0])
    for index in (8, jnp.array([0, 8]), np.array([8])):
        with pytest.raises(ValueError, match="axis of length 8; got 8"):
            posterior.map(lambda m, i=index: m.theta[i])


def back(a, b, g, h):
    """The step before, which the first step has not."""
    step = lambda total, t: (total + jnp.where(t > 0, a[t - 1], 0.0), None)
    return jax.lax.scan(step, 0.0, jnp.arange(3))[0]


@pytest.mark.parametrize(
    "read",
    [
        lambda a, b, g, h: jnp.where(g < 0, 0.0, a[g]),
        lambda a, b, g, h: a[jnp.where(g < 0, 0, g)],
        lambda a, b, g, h: jnp.take(a, g, mode="clip"),
        lambda a, b, g, h: a.at[g].get(mode="fill", fill_value=0.0),
        lambda a, b, g, h: a[jnp.array([0, -1])],
        lambda a, b, g, h: a[g % 3],
        back,
    ],
    ids=["masked", "replaced", "clip", "fill", "from the end", "wrapped", "step before"],
)
def test_what_the_model_takes_care_of_is_not_refused(read):
    check_indices(Reads(jnp.array([0, -1, 2]), jnp.zeros(3, int), read))
