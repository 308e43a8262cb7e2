"""Finite networks: their moments over random weights are the kernels of the limit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.models.nngp import (
    Conv,
    Dense,
    Erf,
    Flatten,
    GlobalAveragePooling,
    Independent,
    LowRank,
    Orthogonal,
    ReLU,
    Residual,
    Serial,
    Sparse,
)

ROWS = jnp.array([[1.0, 0.0], [0.5, -1.0], [-2.0, 0.3]])
LAWS = [Independent(), Orthogonal(), LowRank(0.5), Sparse(0.7)]
SLOW = pytest.mark.slow
DENSE = Serial(
    Dense(2.0, 0.1),
    Residual(Serial(Erf(), Dense(1.5, 0.2), ReLU(), Dense(0.8))),
    Erf(),
    Dense(),
)


def _second_moments(net, x, width, law, num, key):
    """Return the mean over networks of f(x) f(x'), and its standard error."""

    @eqx.filter_jit
    def one(key):
        made = net.network(width, x.shape[1:], key=key, outputs=64, initialisation=law)
        values = jax.vmap(made)(x)
        return values @ values.T / 64

    draws = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jr.split(key, num)))
    return draws.mean(0), draws.std(0) / np.sqrt(num)


@pytest.mark.parametrize("law", [pytest.param(x, marks=SLOW) for x in LAWS[1:]] + LAWS[:1])
def test_width_goes_to_the_limit(key, law):
    mean, error = _second_moments(DENSE, ROWS, 32, law, 400, key)
    # Width 32 is off by about 1/32 of the kernel, at most 0.8; 4.5 errors are about 0.05.
    assert np.all(np.abs(mean - DENSE.nngp(ROWS)) < 4.5 * error + 0.03)


@pytest.mark.parametrize(
    "last", [pytest.param(Flatten(), marks=SLOW), GlobalAveragePooling()], ids=repr
)
def test_channels_go_to_the_limit(key, last):
    conv = Conv((3, 2), (2, 1), 2.0, 0.1)
    net = Serial(Conv((3, 3), None, 2.0, 0.1), ReLU(), conv, ReLU(), last, Dense(1.0, 0.3))
    x = jr.normal(jr.fold_in(key, 1), (2, 3, 3, 2))
    mean, error = _second_moments(net, x, 16, LowRank(0.5), 200, key)
    assert np.all(np.abs(mean - net.nngp(x)) < 4.5 * error + float(net.nngp(x).max()) / 16)


@pytest.mark.slow
def test_the_tangent_kernel_is_that_of_the_gradients(key):
    @jax.jit
    @jax.vmap
    def tangent_kernel(key):
        made = DENSE.network(64, 2, key=key)
        weights, rest = eqx.partition(made, eqx.is_inexact_array)
        jacobian = jax.vmap(lambda x: jax.grad(lambda w: eqx.combine(w, rest)(x)[0])(weights))
        rows = [j.reshape(3, -1) for j in jax.tree.leaves(jacobian(ROWS))]
        return sum(r @ r.T for r in rows)

    draws = np.asarray(tangent_kernel(jr.split(key, 50)))
    error = draws.std(0) / np.sqrt(50)
    # The variances are leaves too; they are constants of training and add nothing.
    limit = DENSE.kernel(ROWS).ntk
    assert np.all(np.abs(draws.mean(0) - limit) < 4.5 * error + float(limit.max()) / 64)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_entries_have_unit_variance(key, law):
    shape = 12, 16
    matrices = jax.vmap(lambda k: law.sample(shape, key=k))(jr.split(key, 100))
    squares = np.asarray((matrices**2).mean((1, 2)))
    assert abs(squares.mean() - 1) < 4.5 * squares.std() / np.sqrt(100) + 1e-12
    means = np.asarray(matrices.mean((1, 2)))
    assert abs(means.mean()) < 4.5 * means.std() / np.sqrt(100)


def test_structure(key):
    square = Orthogonal().sample((20, 30), key=key)
    assert_allclose(square @ square.T, 30 * np.eye(20), atol=1e-12)
    assert np.linalg.matrix_rank(LowRank(0.25).sample((20, 30), key=key)) == 5
    assert np.all(np.sum(Sparse(0.2).sample((20, 30), key=key) != 0, axis=1) == 6)


WRONG = {
    "width. must be at least 1": lambda net, key: net.network(0, 2, key=key),
    "outputs. must be at least 1": lambda net, key: net.network(3, 2, key=key, outputs=0),
    "must end with .Dense": lambda net, key: Conv((1,)).network(4, (2, 1), key=key),
    "keep the shape of one example": lambda net, key: Residual(net).network(4, 2, key=key),
    "Dense. reads vectors": lambda net, key: net.network(4, (3, 2), key=key),
    "fraction. must be above 0": lambda net, key: LowRank(0.0),
    "density. must be above 0": lambda net, key: Sparse(1.5),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input(words, key):
    with pytest.raises(ValueError, match=words):
        WRONG[words](DENSE, key)
